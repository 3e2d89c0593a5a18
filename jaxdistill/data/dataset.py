"""Prepared tokens as batches, each a pure function of (seed, step)."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxdistill.data.corpus import tokenize
from jaxdistill.data.sequences import Padded, Sequences, split
from jaxdistill.data.sources import Source
from jaxdistill.data.tokenizers import Tokenizer
from jaxdistill.data.vocabularies import TokenizerConfig
from jaxdistill.data.windows import Batch, Windows
from jaxdistill.errors import InputError

Rows = Sequence[int] | np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The data of an experiment.

    Attributes:
      source: where the text comes from, or the ids where they are made already.
      tokenizer: how it becomes ids. A trained tokenizer sees all of the train split, whatever the part.
      length: inputs in a window.
      part: (i, n) trains on the i-th of n disjoint parts of the train documents, so that teacher and student can learn
        from different text. Validation is the same for all parts.
      validation_windows: how many windows to validate on, spread evenly over the split; None for all of them.
    """

    source: Source
    tokenizer: TokenizerConfig
    length: int
    part: tuple[int, int] = (0, 1)
    validation_windows: int | None = None

    def __post_init__(self):
        index, parts = self.part
        if self.length < 1:
            raise InputError(f"length={self.length} must be at least 1")
        if not 0 <= index < parts:
            raise InputError(f"part={self.part} must be (i, n) with 0 <= i < n: the i-th of n parts, counted from 0")
        if self.validation_windows is not None and self.validation_windows < 1:
            raise InputError(f"validation_windows={self.validation_windows} must be at least 1, or None for all")


def prepare(tokens: Tokens, cache: str | os.PathLike[str] | None = None, quiet: bool = False) -> "Dataset":
    """Tokenize what is not in the cache yet (see `storage.cache_root`), and open it.

    Every call reads the source once to find its fingerprint: a text that has changed is never taken for the old one.
    Raises InputError, in one sentence, for whatever is wrong with the source, the tokenizer or the cache.
    """
    source, length = tokens.source, tokens.length
    fingerprint = source.fingerprint()
    tokenizer = tokens.tokenizer.build(source, fingerprint, cache, quiet)
    if isinstance(source, Sequences):
        splits = split(source, fingerprint, tokenizer, length, tokens.part, cache, quiet)
    else:
        splits = {}
        for name, part in {"train": tokens.part, "validation": (0, 1)}.items():
            corpus = tokenize(source, fingerprint, tokenizer, name, part, cache, quiet)
            splits[name] = Windows(corpus.tokens_T, length, tokenizer.eos_id), corpus.manifest
    held_out, _ = splits["validation"]
    wanted = tokens.validation_windows or max(1, len(held_out))
    if wanted > len(held_out):
        raise InputError(f"the validation split has {len(held_out)} windows of length {length}, not {wanted}")
    return Dataset(
        tokenizer=tokenizer,
        train=splits["train"][0],
        held_out=held_out,
        num_validation_windows=wanted,
        manifest={name: manifest for name, (_, manifest) in splits.items()},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Batches over prepared tokens, on the host.

    `size` is that of the global batch, B. `rows` gives only these of its rows: in a run of several hosts each one
    makes its own. Too few windows for one batch is an InputError.

    Attributes:
      tokenizer: the built tokenizer.
      train: all windows for training.
      held_out: all windows for validation.
      num_validation_windows: how many of them are used.
      manifest: the manifests of the splits "train" and "validation": origin, counts, checksums.
    """

    tokenizer: Tokenizer
    train: Windows | Padded
    held_out: Windows | Padded
    num_validation_windows: int
    manifest: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def num_windows(self) -> int:
        """Windows for training: one epoch."""
        return len(self.train)

    @property
    def train_tokens(self) -> int:
        return self.manifest["train"]["tokens"]

    @property
    def validation_tokens(self) -> int:
        """Tokens of the whole validation split."""
        return self.manifest["validation"]["tokens"]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes a token of the validation split, ends of documents included.

        Bits per byte are loss / ln 2 / bytes_per_token, for a mean loss in nats per token.
        """
        return self.manifest["validation"]["bytes"] / self.validation_tokens

    @property
    def validation_windows(self) -> np.ndarray:
        """The numbers of the windows that are validated on, spread evenly over the split."""
        count = self.num_validation_windows
        return np.arange(count, dtype=np.int64) * len(self.held_out) // count

    def first_windows(self, count: int, seed: int) -> np.ndarray:
        """The numbers, ascending, of the training windows among the first `count` of an order: all of one epoch and on.

        InputError where the seed is negative.
        """
        self._check(1, seed, 0)
        if count >= self.num_windows:
            return np.arange(self.num_windows, dtype=np.int64)
        order = _order(self.num_windows, seed)
        return np.sort(np.array([order[place] for place in range(count)], np.int64))

    def batch(self, size: int, seed: int, step: int, rows: Rows = None) -> Batch:
        """The batch of a step: the windows step * size .. step * size + size - 1 of an endless shuffled order.

        The order is a permutation of all windows in every epoch, another one each time; a batch may span two epochs.
        """
        self._check(size, seed, step)
        rows_B, order = _check_rows(size, rows), _order(self.num_windows, seed)
        return self.train.batch(np.array([order[step * size + row] for row in rows_B.tolist()], np.int64))

    def batches(
        self,
        size: int,
        seed: int,
        start: int = 0,
        stop: int | None = None,
        rows: Rows = None,
        then: Callable[[Batch], Batch] | None = None,
    ) -> Iterator[Batch]:
        """`batch` of the steps start .. stop - 1 (None: without end), made ahead of time in the background.

        `then` is what is done to each there, such as reading targets for it from a cache.
        """
        import grain

        self._check(size, seed, start)
        _check_rows(size, rows)
        steps = grain.MapDataset.range(start, sys.maxsize if stop is None else stop)
        made = steps.map(lambda step: self.batch(size, seed, step, rows))
        made = made if then is None else made.map(then)
        return iter(made.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))

    def validation(self, size: int, rows: Rows = None) -> Iterator[Batch]:
        """Every validation window once, in a fixed order; the last batch is filled up with rows of weight 0."""
        rows_B = _check_rows(size, rows)
        padded = np.pad(self.validation_windows, (0, -self.num_validation_windows % size), constant_values=-1)
        return (self.held_out.batch(windows_B[rows_B]) for windows_B in padded.reshape(-1, size))

    def _check(self, size: int, seed: int, step: int) -> None:
        if seed < 0 or step < 0:
            raise InputError(f"seed={seed} and step={step} must not be negative")
        if size > self.num_windows:
            raise InputError(
                f"a batch of {size} windows needs more text: the train split has {self.num_windows} of them"
            )


def _order(num_windows: int, seed: int):
    """The number of the window at each place of the endless order, computed place by place, so that any is at hand."""
    import grain

    return grain.MapDataset.range(num_windows).seed(seed).shuffle().repeat(None)


def _check_rows(size: int, rows: Rows) -> np.ndarray:
    rows_B = np.arange(size) if rows is None else np.asarray(rows, np.int64)
    if not rows_B.size or rows_B.min() < 0 or rows_B.max() >= size:
        raise InputError(f"rows={rows} are no rows of a batch of {size}: there must be some, from 0 to {size - 1}")
    return rows_B
