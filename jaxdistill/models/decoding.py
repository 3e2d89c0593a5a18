"""What a decoder keeps of a text between tokens: keys and values, each in the slot of its position.

Slot m of a row holds what its token at position m left behind. So a row's positions say all there is to know about its
past: a query sees the slots up to its own position, and whatever lies behind them, padding of a shorter prompt for
instance, is overwritten before any query gets that far. Rows of any lengths share a cache without a mask of their own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Cache(NamedTuple):
    """Keys and values of all layers, as they enter the dot product, in the model's dtype."""

    k_NBMJK: Array
    v_NBMJK: Array

    def write(self, k_NBLJK: Array, v_NBLJK: Array, start_B: Array) -> "Cache":
        """This cache with L more tokens in each row, from slot `start_B` on."""
        put = jax.vmap(write, (0, 0, None))
        return Cache(put(self.k_NBMJK, k_NBLJK, start_B), put(self.v_NBMJK, v_NBLJK, start_B))


class Past(NamedTuple):
    """One layer's part of a cache.

    Attributes:
      k_BMJK, v_BMJK: its keys and values.
      start_B: int32, the slots that the tokens at hand belong to begin here.
    """

    k_BMJK: Array
    v_BMJK: Array
    start_B: Array

    def join(self, k_BLJK: Array, v_BLJK: Array) -> tuple[Array, Array]:
        """Keys and values [B, M, J, K] of the past and of the tokens at hand."""
        return write(self.k_BMJK, k_BLJK, self.start_B), write(self.v_BMJK, v_BLJK, self.start_B)


def write(old_BMJK: Array, new_BLJK: Array, start_B: Array) -> Array:
    """`old_BMJK` with slots start, ..., start + L - 1 of each row replaced."""
    return jax.vmap(lambda old, new, start: jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=0))(
        old_BMJK, new_BLJK, start_B
    )


def slot_mask(position_BL: Array, slots: int, window: int | None = None) -> Array:
    """True where a query may look: at slots up to its position, the last `window` of them; bool [B, 1, L, M]."""
    distance_BLM = position_BL[:, :, None] - jnp.arange(slots)
    mask_BLM = distance_BLM >= 0
    return (mask_BLM if window is None else mask_BLM & (distance_BLM < window))[:, None]
