"""Tokens in the order of their probability: what needs all of a token's logits at one place."""

import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.vocabulary import Vocabulary


def mass_before(log_p_BLV: Array, vocabulary: Vocabulary, who: str) -> Array:
    """The joint probability of all tokens that come before each one, from the most probable down; ties by id.

    fp32 [B, L, V]; 0 for the most probable token. `who` asks: the name in the error.

    Raises InputError where the vocabulary is sharded.
    """
    check_whole(vocabulary, who)
    order_BLV = jnp.argsort(-log_p_BLV, axis=-1, stable=True)
    p_BLV = jnp.exp(jnp.take_along_axis(log_p_BLV, order_BLV, axis=-1))
    before_BLV = jnp.cumsum(p_BLV, axis=-1) - p_BLV
    return jnp.take_along_axis(before_BLV, jnp.argsort(order_BLV, axis=-1), axis=-1)


def check_whole(vocabulary: Vocabulary, who: str) -> None:
    """Raise InputError where the vocabulary is sharded."""
    if vocabulary.axis is not None:
        raise InputError(
            f"{who} needs all logits of a token at once, which a sharded vocabulary does not have: set "
            f"{' and '.join(f'mesh.{axis}' for axis in vocabulary.axis)} to 1, or choose another table"
        )
