"""Tokens in the order of their probability. What sorts needs all of a token's logits at one place."""

import jax
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


def kth_largest(z_BLV: Array, k: int, vocabulary: Vocabulary) -> Array:
    """The k-th largest of every token's logits, fp32 [...]; the least of them where there are no more than k.

    z_BLV may have any axes before its last. The bits of the answer are found one by one from the first, by how many
    logits are at least as large: 32 passes of comparing and counting, which cost less than sorting (an XLA without a
    fast top-K sorts), and one number a pass and token crosses between shards of a vocabulary.
    """
    bits_BLV = jax.lax.bitcast_convert_type(z_BLV.astype(jnp.float32), jnp.uint32)
    sign, rank = jnp.uint32(1 << 31), jnp.minimum(k, vocabulary.add(jnp.int32(z_BLV.shape[-1])))
    order_BLV = jnp.where(bits_BLV < sign, bits_BLV | sign, ~bits_BLV)  # rises as the numbers do

    def next_bit(i, found_BL):
        tried_BL = found_BL | (sign >> i.astype(jnp.uint32))
        count_BL = vocabulary.sum((order_BLV >= tried_BL[..., None]).astype(jnp.int32))
        return jnp.where(count_BL >= rank, tried_BL, found_BL)

    found_BL = jax.lax.fori_loop(0, 32, next_bit, jnp.zeros_like(order_BLV[..., 0]))
    return jax.lax.bitcast_convert_type(jnp.where(found_BL < sign, ~found_BL, found_BL ^ sign), jnp.float32)


def check_whole(vocabulary: Vocabulary, who: str) -> None:
    """Raise InputError where the vocabulary is sharded."""
    if vocabulary.axis is not None:
        raise InputError(
            f"{who} needs all logits of a token at once, which a sharded vocabulary does not have: set "
            f"{' and '.join(f'mesh.{axis}' for axis in vocabulary.axis)} to 1, or choose another table"
        )
