"""How probable a text is after another: what multiple choice, cloze and lm-eval ask of a model.

Texts are scored in batches of one shape, so that a file of questions compiles one program.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.data import Batch, Tokenizer
from jaxdistill.errors import InputError
from jaxdistill.evals.per_token import per_token
from jaxdistill.evals.scores import head_of
from jaxdistill.losses.linear_heads import Sharding

MULTIPLE = 32  # lengths are rounded up to it, so that files of like questions share a program


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation:
    """A text as ids, of which those from `first` on are scored and the others given.

    Attributes:
      ids: int32 [T], T >= 2.
      first: from 1 to T - 1; the first id of a text has nothing before it, and training never asks for it.
    """

    ids: np.ndarray
    first: int

    def within(self, length: int) -> "Continuation":
        """Without what lies more than `length` inputs before the end, which no window of training could see.

        Raises InputError where not even the scored part fits.
        """
        extra = max(0, len(self.ids) - length - 1)
        if extra >= self.first:
            scored = len(self.ids) - self.first
            raise InputError(f"a text of {scored} tokens cannot be scored in a window of {length}: shorten it")
        return Continuation(self.ids[extra:], self.first - extra)


class Likelihood(NamedTuple):
    """Of one continuation: the sum of its log-probabilities in nats, and whether greedy decoding would give it."""

    logp: float
    greedy: bool


def encode(tokenizer: Tokenizer, context: str, text: str) -> Continuation:
    """`text` after `context`, tokenized as one: a token in which both meet belongs to the text.

    Raises InputError where the context is empty or no token remains for the text.
    """
    whole, given = tokenizer.encode(context + text), tokenizer.encode(context)
    shorter = min(len(whole), len(given))
    differs = np.flatnonzero(whole[:shorter] != given[:shorter])
    first = int(differs[0]) if len(differs) else shorter
    if first < 1 or first >= len(whole):
        raise InputError(
            f"nothing can be scored of {text[:40]!r} after {context[-40:]!r}: both need a token of their own"
        )
    return Continuation(whole, first)


def make_likelihoods(model: Any, *, sharding: Sharding = Sharding()) -> Callable[[Any, Any], tuple[Array, Array]]:
    """of_batch(params, batch) -> (logp fp32 [B], greedy bool [B]) of the labels of weight 1, to be compiled."""

    def of_batch(params: Any, batch: Any) -> tuple[Array, Array]:
        values = per_token(head_of(model, params, batch), batch.label_BL, sharding=sharding)
        counts_BL = batch.weight_BL != 0
        logp_B = -jnp.sum(jnp.where(counts_BL, values["loss"], 0), axis=1)
        return logp_B, jnp.all((values["correct"] == 1) | ~counts_BL, axis=1)

    return of_batch


def batches(items: Sequence[Continuation], size: int, limit: int) -> list[Batch]:
    """The continuations in order, `size` rows a batch and padding at the end, all of one length up to `limit`."""
    longest = max((len(item.ids) - 1 for item in items), default=0)
    length = min(limit, -(-longest // MULTIPLE) * MULTIPLE)
    items = [item.within(limit) for item in items]
    return [_batch(items[start : start + size], size, length) for start in range(0, len(items), size)]


def _batch(items: Sequence[Continuation], size: int, length: int) -> Batch:
    tokens = np.zeros((size, length + 1), np.int32)
    weight_BL = np.zeros((size, length), np.float32)
    for row, item in enumerate(items):
        tokens[row, : len(item.ids)] = item.ids
        weight_BL[row, item.first - 1 : len(item.ids) - 1] = 1
    position_BL = np.broadcast_to(np.arange(length, dtype=np.int32), weight_BL.shape)
    return Batch(tokens[:, :-1], tokens[:, 1:], weight_BL, np.ones_like(position_BL), position_BL)


def likelihoods(
    on_batch: Callable[[Any], tuple[Any, Any]],
    items: Sequence[Continuation],
    *,
    size: int,
    limit: int,
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[Likelihood]:
    """The likelihood of every continuation.

    Args:
      on_batch: batch -> what `make_likelihoods` gives for it.
      items: what to score; one longer than `limit` loses the beginning of its context, as in `Continuation.within`.
      size: rows of a batch.
      limit: inputs of a window, as many as training had.
      track: called with the batches, gives them back one by one; a progress bar.
    """
    found: list[Likelihood] = []
    for batch in track(batches(items, size, limit)):
        logp_B, greedy_B = map(np.asarray, on_batch(batch))
        found += [Likelihood(float(logp), bool(greedy)) for logp, greedy in zip(logp_B, greedy_B, strict=True)]
    return found[: len(items)]
