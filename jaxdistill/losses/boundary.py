"""The probability that a boundary follows: the mass of those ids that a new word begins with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.loss import Divergence
from jaxdistill.losses.vocabulary import Vocabulary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bounded:
    """The token of the data, and which ids are boundaries.

    Attributes:
      label_BL: int32.
      is_boundary_V: bool, as long as the output embedding, and false in its padding.
    """

    label_BL: Array
    is_boundary_V: Array


@dataclasses.dataclass(frozen=True)
class BoundaryMass(Divergence):
    """log sum_v q_v over the ids that are boundaries, with q = softmax(z); 0 at most (ALM, arXiv 2503.20083, 3.1).

    No divergence, but a sum over the vocabulary all the same. Masses below 1e-37 count as that.
    """

    def log_p(self, z_BLV: Array, target: Any, vocabulary: Vocabulary) -> Array:
        """The boundaries, 0 or 1: what the masses are multiplied by."""
        return jnp.broadcast_to(target.is_boundary_V, z_BLV.shape)

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        return (jnp.where(log_p_BLV, jnp.exp(log_q_BLV), 0),)

    def value(self, *sum_BL: Array) -> Array:
        (mass_BL,) = sum_BL
        return jnp.log(jnp.clip(mass_BL, 1e-37, 1))
