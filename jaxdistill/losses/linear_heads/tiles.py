"""Tiles of a head's vocabulary: what the lean forms walk over.

The last tile begins early enough to be whole, so that no output embedding is ever padded and copied; the columns it
shares with the tile before are not `fresh` and count there alone.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill import device
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.sharding import Gradient
from jaxdistill.losses.targets import NO_ID
from jaxdistill.losses.vocabulary import Vocabulary

TILE_LOGITS = {"cpu": 2**20, "tpu": 2**25, "gpu": 2**25}
"""Logits that one device holds at a time in a lean form."""
NARROWEST = 256  # columns below which matmuls are no longer worth their start


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The vocabulary of a head in `number` tiles of `columns` columns."""

    head: Head
    columns: int
    number: int

    @classmethod
    def of(cls, head: Head) -> "Tiles":
        tokens, rows = head.h_BLD.shape[0] * head.h_BLD.shape[1], head.w_VD.shape[0]
        logits = TILE_LOGITS.get(device.platform(), TILE_LOGITS["gpu"])
        columns = min(rows, max(NARROWEST, logits // max(1, tokens)))
        return cls(head, columns, -(-rows // columns))

    def start(self, tile: Array) -> Array:
        return jnp.minimum(tile * self.columns, self.head.w_VD.shape[0] - self.columns)

    def fresh(self, tile: Array) -> Array:
        """bool [columns]: the columns that no tile before has."""
        return self.start(tile) + jnp.arange(self.columns) >= tile * self.columns

    def slice(self, tile: Array, vocabulary: Vocabulary) -> Vocabulary:
        """Where the tile lies; its sums are its own, not yet those of all shards."""
        return Vocabulary(vocabulary.first + self.start(tile))

    def own(self, tile: Array, id_BLS: Array, vocabulary: Vocabulary) -> Array:
        """The ids with those before the tile's fresh columns blanked out."""
        return jnp.where(id_BLS >= vocabulary.first + tile * self.columns, id_BLS, NO_ID)

    def logits(self, tile: Array, vocabulary: Vocabulary) -> tuple[Array, Callable]:
        """(z_BLV, pull_back): fp32 logits of the tile, and dz_BLV -> (dproduct_BLV, dbias_V or None)."""
        head, start = self.head, self.start(tile)
        w_VD = jax.lax.dynamic_slice_in_dim(head.w_VD, start, self.columns)
        bias_V = None if head.bias_V is None else jax.lax.dynamic_slice_in_dim(head.bias_V, start, self.columns)
        product_BLV = dataclasses.replace(head, w_VD=w_VD).product()
        return jax.vjp(lambda x_BLV, bias_V: head.finish(x_BLV, bias_V, vocabulary.first + start), product_BLV, bias_V)

    def gradient(self, dz_of: Callable, vocabulary: Vocabulary, *, exact: bool) -> Gradient:
        """The gradient in the head of what has dz_of(tile, z_BLV) as its gradient in the logits of each tile.

        A row of dW is complete with its tile, so it is kept in the parameter's own dtype, or in fp32 where `exact` asks
        for it because more tokens are to be added elsewhere.
        """
        head = self.head

        def body(carry, tile):
            dh_BLD, dw_VD, dbias_V = carry
            z_BLV, pull_back = self.logits(tile, vocabulary)
            dproduct_BLV, dbias_here_V = pull_back(dz_of(tile, z_BLV))
            dproduct_BLV = dproduct_BLV.astype(head.h_BLD.dtype)
            start = self.start(tile)
            w_VD = jax.lax.dynamic_slice_in_dim(head.w_VD, start, self.columns).astype(head.h_BLD.dtype)
            dh_BLD += jnp.einsum("blv,vd->bld", dproduct_BLV, w_VD, preferred_element_type=jnp.float32)
            dw_here_VD = jnp.einsum("blv,bld->vd", dproduct_BLV, head.h_BLD, preferred_element_type=jnp.float32)
            dbias_V = None if dbias_V is None else _add_rows(dbias_V, dbias_here_V, start)
            return (dh_BLD, _add_rows(dw_VD, dw_here_VD, start), dbias_V), None

        def zeros(x):
            return jnp.zeros(x.shape, jnp.float32 if exact else x.dtype)

        bias_V = None if head.bias_V is None else zeros(head.bias_V)
        carry = (jnp.zeros(head.h_BLD.shape, jnp.float32), zeros(head.w_VD), bias_V)
        (dh_BLD, dw_VD, dbias_V), _ = jax.lax.scan(body, carry, jnp.arange(self.number))
        return Gradient(vocabulary.add(dh_BLD), dw_VD, dbias_V)


def _add_rows(whole: Array, rows: Array, start: Array) -> Array:
    """`whole` with these rows added from `start` on."""
    here = jax.lax.dynamic_slice_in_dim(whole, start, rows.shape[0]) + rows.astype(whole.dtype)
    return jax.lax.dynamic_update_slice_in_dim(whole, here, start, 0)
