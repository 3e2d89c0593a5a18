"""Distance of sorted probabilities, for teachers whose tokens have other names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.lazy import check_whole_distribution
from jaxdistill.losses.targets import Dense


@dataclasses.dataclass(frozen=True)
class SortedL1:
    """sum_i |sort(q)_i - sort(p)_i|, both in descending order (ULD, arXiv 2402.12030): at most the L1 distance.

    No token is compared with its namesake, so permuting either vocabulary changes nothing, and the smaller one is
    filled up with zeros. That is its use and its weakness: a permuted teacher costs nothing. Positions must already be
    aligned. Called on logits it takes a teacher of any vocabulary; the streamed ops want that of the student.

    Raises InputError where the target is not a whole distribution.
    """

    def __call__(self, z_BLV: Array, target: Any) -> Array:
        check_whole_distribution(target)
        z_target_BLV = target.head.logits() if isinstance(target, Dense) else target.logits(z_BLV)
        p_BLV = jax.lax.stop_gradient(jax.nn.softmax(z_target_BLV, axis=-1))
        return sorted_distance(jax.nn.softmax(z_BLV, axis=-1), p_BLV)


def sorted_distance(q_BLV: Array, p_BLV: Array) -> Array:
    """sum_i |sort(q)_i - sort(p)_i| of numbers that are not negative, the shorter list filled up with zeros."""
    columns = max(q_BLV.shape[-1], p_BLV.shape[-1])
    q_BLV, p_BLV = (
        jnp.pad(-jnp.sort(-x_BLV, axis=-1), ((0, 0), (0, 0), (0, columns - x_BLV.shape[-1])))
        for x_BLV in (q_BLV, p_BLV)
    )
    return jnp.sum(jnp.abs(q_BLV - p_BLV), axis=-1)
