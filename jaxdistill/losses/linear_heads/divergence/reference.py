"""The definition of `linear_divergence`: form all logits of both heads and compare the distributions."""

import jax.numpy as jnp
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.loss import Divergence
from jaxdistill.losses.targets import Dense


def linear_divergence(divergence: Divergence, head: Head, target: Dense, weight_BL: Array) -> tuple[Array, Array]:
    """sum_t weight_t divergence_t, and the divergence of every token."""
    value_BL = divergence(head.logits(), target)
    return jnp.sum(weight_BL * value_BL), value_BL
