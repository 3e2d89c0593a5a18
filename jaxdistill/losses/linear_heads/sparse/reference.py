"""The definition of `linear_sparse`: form all logits, look at the normaliser and at a few of them, add up."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.vocabulary import WHOLE


def linear_picks(head: Head, id_BLS: Array, temperature: float = 1.0) -> tuple[Array, Array]:
    """The log-normaliser of z / temperature, and z at the ids."""
    z_BLV = head.logits()
    return WHOLE.lse(z_BLV / temperature), WHOLE.pick(z_BLV, id_BLS)


def linear_sparse(
    function: Callable, head: Head, id_BLS: Array, inputs: Any, temperature: float = 1.0
) -> tuple[Array, dict[str, Array]]:
    """sum_t function(lse_t, z_t at its ids, inputs_t), and the values of every token."""
    loss_BL, values = function(*linear_picks(head, id_BLS, temperature), inputs)
    return jnp.sum(loss_BL), values
