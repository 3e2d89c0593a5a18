"""Which windows of the data stand in which rows of a cache."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxdistill.across import Chunking
from jaxdistill.cache import codec
from jaxdistill.cache.reader import columns_of
from jaxdistill.cache.recipe import Recipe
from jaxdistill.cache.store import Store
from jaxdistill.data import Dataset

SHARD_TOKENS = 2**16, 2**24  # a shard has at least and at most so many tokens; between them a cache has 256 shards


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which windows stand in which rows, fixed before the first is written.

    Attributes:
      windows: the numbers of the windows of each split; the rows of the one follow those of the other.
      layout: how their targets are stored.
      store: where.
    """

    windows: dict[str, np.ndarray]
    layout: codec.Layout
    store: Store

    def pieces(self, rows: range, size: int) -> Iterator[tuple[str, np.ndarray]]:
        """(split, numbers of `size` of its windows or, at the end, fewer) for a range of rows, in order."""
        first = 0
        for split, windows in self.windows.items():
            own = windows[max(0, rows.start - first) : max(0, rows.stop - first)]
            first += len(windows)
            yield from ((split, own[start : start + size]) for start in range(0, len(own), size))


def plan(recipe: Recipe, dataset: Dataset, directory: Path) -> Plan:
    """The plan of a cache over prepared data."""
    every = dataset.num_windows if recipe.windows is None else recipe.windows
    validation = dataset.validation_windows[: 0 if isinstance(recipe.keep, Chunking) else None]  # nothing reads them
    windows = {"train": dataset.first_windows(every, recipe.order), "validation": validation}
    rows = sum(map(len, windows.values()))
    layout = codec.layout(recipe.keep, dataset.vocab_size, recipe.data.length, recipe.resolution)
    tokens = min(max(rows * recipe.data.length // 256, SHARD_TOKENS[0]), SHARD_TOKENS[1])
    shard_rows = 1 << max(0, (tokens // recipe.data.length).bit_length() - 1)
    return Plan(windows, layout, Store(directory, columns_of(layout), rows, shard_rows))
