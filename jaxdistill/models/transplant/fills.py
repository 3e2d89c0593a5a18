"""What rows without a copy start from: functions of the old rows, fill(xp, rows_VD, num) -> [num, D] in fp32.

xp is the NumPy of the rows, which are fp32 and without padding; num is how many rows there are to make.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxdistill.errors import InputError

Fill = Callable[[Any, Any, int], Any]


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of the old rows: as an output layer it bounds how far the new tokens move the others (Hewitt 2021)."""

    def __call__(self, xp: Any, rows_VD: Any, num: int) -> Any:
        return xp.broadcast_to(rows_VD.mean(0), (num, rows_VD.shape[1]))


@dataclasses.dataclass(frozen=True)
class Normal:
    """Draws from a normal with the mean and the variance of the old rows in every dimension.

    Attributes:
      seed: of the draws. Input and output rows of an untied model are independent if they have two seeds.
    """

    seed: int = 0

    def __call__(self, xp: Any, rows_VD: Any, num: int) -> Any:
        noise_RD = xp.asarray(jax.random.normal(jax.random.key(self.seed), (num, rows_VD.shape[1])))
        return rows_VD.mean(0) + rows_VD.std(0) * noise_RD


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Weighted sums of old rows: row r is the sum over s of weights[r, s] old[ids[r, s]].

    Attributes:
      ids: int [R, S], old ids.
      weights: fp32 [R, S]; 0 where a row has fewer parts.
      rest: the fill of rows without any weight.
    """

    ids: np.ndarray
    weights: np.ndarray
    rest: Fill = Normal()

    @classmethod
    def of(cls, parts: Sequence[tuple[Sequence[int], Sequence[float]]], rest: Fill) -> "Mixture":
        """From the ids and weights of every row, of any number each."""
        shape = (len(parts), max((len(ids) for ids, _ in parts), default=0))
        mixture = cls(np.zeros(shape, np.int64), np.zeros(shape, np.float32), rest)
        for row, (ids, weights) in enumerate(parts):
            mixture.ids[row, : len(ids)] = ids
            mixture.weights[row, : len(ids)] = weights
        return mixture

    def __call__(self, xp: Any, rows_VD: Any, num: int) -> Any:
        if len(self.weights) != num:
            raise InputError(
                f"a mixture for {len(self.weights)} tokens, and {num} have no copy: make it from the copies of the plan"
            )
        if self.ids.size and not 0 <= self.ids.min() <= self.ids.max() < len(rows_VD):
            raise InputError(f"a mixture of ids beyond the {len(rows_VD)} old ones: make it from the old vocabulary")
        sum_RD = xp.zeros((num, rows_VD.shape[1]), np.float32)
        for ids, weights in zip(self.ids.T, self.weights.T, strict=True):  # [R, S, D] at once would be large
            sum_RD = sum_RD + weights[:, None] * xp.take(rows_VD, ids, axis=0, mode="clip")
        is_mixed = np.any(self.weights != 0, axis=1)
        return sum_RD if is_mixed.all() else xp.where(is_mixed[:, None], sum_RD, self.rest(xp, rows_VD, num))
