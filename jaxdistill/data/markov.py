"""A synthetic source whose entropy is known: text from a Markov chain, to hold a model's loss against the truth."""

import dataclasses
import functools
import hashlib
import math
import string
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxdistill.data.sources import SPLITS, check_split
from jaxdistill.data.storage import content_key
from jaxdistill.errors import InputError

LETTERS = string.ascii_letters + string.digits
BLOCK = 2**17  # letters drawn together: whole documents, at least one, from a generator of their own
MAX_CONTEXTS = 4096  # the stationary distribution is one dense linear solve in this many unknowns


@dataclasses.dataclass(frozen=True)
class Markov:
    """Text from a stationary Markov chain.

    Every context of `order` letters has its own distribution of the next letter, drawn from a symmetric
    Dirichlet(`concentration`): a small concentration gives predictable text, a large one nearly uniform text.

    Attributes:
      alphabet: number of letters, 2 to 62 (a-z, A-Z, 0-9).
      order: letters of context that the next one depends on; 0 for independent letters.
      concentration: of the Dirichlet, above 0.
      seed: of the chain and of the documents.
      num_documents: documents for training; validation gets a twentieth of it, rounded up, from a stream of its own.
      length: letters in a document. With the tokenizer `Bytes` a document and its end are `length + 1` tokens, so
        windows of `length + 1` hold one document each.
    """

    alphabet: int
    order: int
    concentration: float
    seed: int
    num_documents: int
    length: int

    def __post_init__(self):
        if not 2 <= self.alphabet <= len(LETTERS):
            raise InputError(f"alphabet={self.alphabet} must be a number of letters from 2 to {len(LETTERS)}")
        if self.order < 0 or self.alphabet**self.order > MAX_CONTEXTS:
            raise InputError(f"order={self.order} must be at least 0 and give at most {MAX_CONTEXTS} contexts")
        if not 0 < self.concentration < math.inf:
            raise InputError(f"concentration={self.concentration} must be above 0 and finite")
        if self.seed < 0 or self.num_documents < 1 or self.length < max(self.order, 1):
            raise InputError("seed must not be negative, num_documents at least 1, and length at least order and 1")

    def documents(self, split: str) -> Iterator[str]:
        check_split(split)
        letters = np.frombuffer(LETTERS.encode(), np.uint8)
        total = self.num_documents if split == "train" else -(-self.num_documents // 20)
        size = _block_size(self)
        for start in range(0, total, size):
            block = letters[_sample(self, SPLITS.index(split), start // size, min(size, total - start))]
            yield from (row.tobytes().decode() for row in block)

    def fingerprint(self) -> str:
        # The first documents stand in for the chain: they show a change in NumPy's generators, and not in a last digit.
        first = hashlib.sha256(_sample(self, 0, 0, min(_block_size(self), self.num_documents)).tobytes()).hexdigest()
        return content_key({"markov": dataclasses.asdict(self), "first": first})

    def describe(self) -> dict[str, Any]:
        return {"source": "markov", **dataclasses.asdict(self), "entropy_rate": self.entropy_rate()}

    def entropies(self) -> np.ndarray:
        """Entropy of the next letter given the last 0, 1, ..., `order` letters: float64 [order + 1], nats, exact.

        H(X_{j+1} | X_1..X_j) = H(X_1..X_{j+1}) - H(X_1..X_j) under the stationary distribution (Cover & Thomas,
        *Elements of Information Theory*, 2nd ed., sec. 4.2). Entry min(t, order) is the least expected loss on letter
        t + 1 of a document, counted from 1, of a model that has seen the document from its start.
        """
        return np.diff([_entropy(joint) for joint in self._blocks()])

    def next_letter(self) -> list[np.ndarray]:
        """P(next letter | the last 0, 1, ..., `order` letters): float64 [contexts, alphabet] each.

        Exact; 0 where a context never occurs. A context is the number that its letters spell in base `alphabet`, the
        newest letter last.
        """
        rows = (joint.reshape(-1, self.alphabet) for joint in self._blocks()[1:])
        return [own / np.maximum(own.sum(axis=1, keepdims=True), np.finfo(float).tiny) for own in rows]

    def _blocks(self) -> list[np.ndarray]:
        """Stationary distributions of 0, 1, ..., order + 1 neighbouring letters, [alphabet] * j each."""
        rows, stationary = _chain(self)
        joint = (stationary[:, None] * rows).reshape((self.alphabet,) * (self.order + 1))
        return [joint.sum(axis=tuple(range(self.order + 1 - j))) for j in range(self.order + 2)]

    def entropy_rate(self) -> float:
        """Entropy of the next letter given all that came before, in nats: the last of `entropies`."""
        return float(self.entropies()[-1])


@functools.lru_cache(maxsize=8)
def _chain(config: Markov) -> tuple[np.ndarray, np.ndarray]:
    """Rows of next-letter probabilities [contexts, alphabet], and the stationary distribution [contexts], float64.

    A context is the number that its letters spell in base `alphabet`, the newest letter last.
    """
    contexts = config.alphabet**config.order
    generator = np.random.default_rng([config.seed, 2])  # 0 and 1 are the splits
    rows = generator.dirichlet(np.full(config.alphabet, config.concentration), size=contexts)
    step = np.zeros((contexts, contexts))
    follows = (np.arange(contexts)[:, None] * config.alphabet + np.arange(config.alphabet)) % contexts
    np.add.at(step, (np.arange(contexts)[:, None], follows), rows)
    # pi = pi P and sum(pi) = 1 together, as one regular system: (I - P^T + 1 1^T) pi = 1.
    try:
        stationary = np.linalg.solve(np.eye(contexts) - step.T + 1, np.ones(contexts))
    except np.linalg.LinAlgError:
        stationary = np.full(contexts, np.nan)
    if not (np.abs(stationary @ step - stationary).sum() < 1e-10 and stationary.min() > -1e-12):
        raise InputError(f"this chain falls into separate parts: raise concentration={config.concentration}")
    return rows, np.maximum(stationary, 0)


def _block_size(config: Markov) -> int:
    return max(1, BLOCK // config.length)


def _sample(config: Markov, stream: int, block: int, count: int) -> np.ndarray:
    """Letters of `count` documents, [count, length] as numbers of letters: a function of (config, stream, block)."""
    rows, stationary = _chain(config)
    # A draw picks the letter whose share of [0, 1) it falls in; the last bound goes, since it is 1 or a rounding less.
    bounds = np.cumsum(rows, axis=1)[:, :-1]
    uniform = np.random.default_rng([config.seed, stream, block]).random((_block_size(config), config.length))[:count]
    context = np.searchsorted(np.cumsum(stationary)[:-1], uniform[:, 0], side="right")
    letters = np.empty((count, config.length), np.uint8)
    for t in range(config.order):
        letters[:, t] = context // config.alphabet ** (config.order - 1 - t) % config.alphabet
    for t in range(config.order, config.length):
        letters[:, t] = (uniform[:, t, None] >= bounds[context]).sum(axis=1)
        context = (context * config.alphabet + letters[:, t]) % len(rows)
    return letters


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
