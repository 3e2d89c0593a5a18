"""A tensor of theirs beside one of ours. Both are named by letters, so the change of layout follows.

`Row("layers/attention/q_DHK", "model.layers.{n}.self_attn.q_proj.weight", "HK D")` says that their matrix has rows over
heads and head sizes and columns over the width, and ours the same numbers in the order D, H, K, below a leading N.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxdistill import dims

PART = "c"  # stands in their axes for the parts of a tensor in which several of ours are fused


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our arrays and their tensor, or their tensor of each layer and expert.

    Attributes:
      ours: path of our array; what lies below `layers` is stacked.
      theirs: name of the tensor, with {n} for the layer and {e} for the expert.
      axes: letters of their dimensions, those in one group laid out together; "c" counts fused parts.
      part: which of the fused parts is ours.
      parts: how many are fused.
    """

    ours: str
    theirs: str
    axes: str
    part: int = 0
    parts: int = 1

    @property
    def own(self) -> str:
        """The letters of one entry of ours: without N, and without E where their experts have a tensor each."""
        letters = dims.letters(self.ours.rpartition("/")[2])
        return letters.replace("E", "") if "{e}" in self.theirs else letters

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of their tensor."""
        sizes = {**sizes, PART: self.parts}
        return tuple(math.prod(sizes[letter] for letter in group) for group in self.axes.split())

    def entries(self, sizes: Mapping[str, int]) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index into our array, name of their tensor) of every tensor of the row."""
        layers = range(sizes["N"]) if "{n}" in self.theirs else (None,)
        experts = range(sizes["E"]) if "{e}" in self.theirs else (None,)
        for n, e in itertools.product(layers, experts):
            yield tuple(i for i in (n, e) if i is not None), self.theirs.format(n=n, e=e)

    def to_ours(self, theirs: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Their tensor as one entry of our array; a view where it can be."""
        letters = self.axes.replace(" ", "")
        sizes = {**sizes, PART: self.parts}
        parted = theirs.reshape([sizes[letter] for letter in letters])
        if PART in letters:
            parted = np.take(parted, self.part, axis=letters.index(PART))
            letters = letters.replace(PART, "")
        return parted.transpose([letters.index(letter) for letter in self.own])

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """One entry of our array in the order of their letters; a fused tensor needs all its parts (see `fuse`)."""
        letters = self.axes.replace(" ", "").replace(PART, "")
        return ours.transpose([self.own.index(letter) for letter in letters])


def fuse(rows: Sequence[Row], arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
    """Their tensor from one entry of each of our arrays that share in it, in the order of `part`; contiguous."""
    letters = rows[0].axes.replace(" ", "")
    parts = [row.to_theirs(array) for row, array in zip(rows, arrays, strict=True)]
    whole = np.stack(parts, letters.index(PART)) if PART in letters else parts[0]
    return np.ascontiguousarray(whole.reshape(rows[0].shape(sizes)))


def by_tensor(rows: Sequence[Row], sizes: Mapping[str, int]) -> dict[str, list[tuple[Row, tuple[int, ...]]]]:
    """Every tensor of theirs with the rows that share in it and the index into our arrays, parts in order."""
    found: dict[str, list[tuple[Row, tuple[int, ...]]]] = {}
    for row in sorted(rows, key=lambda row: row.part):
        for index, name in row.entries(sizes):
            found.setdefault(name, []).append((row, index))
    return found
