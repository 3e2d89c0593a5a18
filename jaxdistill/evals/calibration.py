"""Calibration: does a model that is 70 % sure of its most probable token get 70 % of those right?"""

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax import Array

BINS = 15
"""Of equal width, as in Guo et al. 2017 (arXiv 1706.04599), where nothing else is asked for."""


@dataclasses.dataclass(frozen=True)
class Reliability:
    """A reliability diagram: the tokens by the confidence of the model, in bins of equal width.

    Bin m of M holds the tokens whose confidence lies above m / M and up to (m + 1) / M.

    Attributes:
      count: tokens in each bin.
      confidence: their mean confidence, None in an empty bin.
      accuracy: the share of them whose most probable token is the label, None in an empty bin.
    """

    count: tuple[float, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]

    @classmethod
    def of(cls, sums: Mapping[str, np.ndarray]) -> "Reliability":
        """From the sums over all tokens that `bin_sums` gives for some."""

        def mean(name: str) -> tuple[float | None, ...]:
            pairs = zip(sums[name].tolist(), sums["count"].tolist(), strict=True)
            return tuple(total / count if count else None for total, count in pairs)

        return cls(tuple(sums["count"].tolist()), mean("confidence"), mean("correct"))

    @property
    def filled(self) -> list[tuple[float, float, float]]:
        """(count, confidence, accuracy) of every bin that holds a token."""
        bins = zip(self.count, self.confidence, self.accuracy, strict=True)
        return [(count, c, a) for count, c, a in bins if c is not None and a is not None]

    @property
    def ece(self) -> float:
        """The expected calibration error, sum_m count_m / count |accuracy_m - confidence_m|, from 0 to 1."""
        gaps = [count * abs(accuracy - confidence) for count, confidence, accuracy in self.filled]
        return math.fsum(gaps) / math.fsum(self.count)


def bin_sums(confidence_BL: Array, correct_BL: Array, weight_BL: Array, bins: int) -> dict[str, Array]:
    """Sums over the tokens of each bin, fp32 [bins]: "count", "confidence" and "correct"; they add over batches."""
    own_BL = jnp.clip(jnp.ceil(confidence_BL * bins).astype(jnp.int32) - 1, 0, bins - 1)
    weighs = jnp.where(own_BL[..., None] == jnp.arange(bins), weight_BL[..., None], 0.0)
    return {
        "count": jnp.sum(weighs, axis=(0, 1)),
        "confidence": jnp.sum(weighs * confidence_BL[..., None], axis=(0, 1)),
        "correct": jnp.sum(weighs * correct_BL[..., None], axis=(0, 1)),
    }
