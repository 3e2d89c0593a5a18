"""A slice of the vocabulary and the sums over all of it: the only place where a loss meets a sharded vocabulary.

Everything a streamed loss needs of its logits is a reduction over the vocabulary or a look-up at an id. Both are local
to the shard that holds the columns, and one number a token crosses between shards.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

FEW = 4  # up to so many ids a token, comparing every column beats a gather and a scatter


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Where the columns of `z_BLV` lie.

    Attributes:
      first: the id of the first column.
      axis: the mesh axes the vocabulary is sharded over, inside `shard_map`; None where all columns are here.
    """

    first: Array | int = 0
    axis: tuple[str, ...] | None = None

    def sum(self, x_BLV: Array) -> Array:
        """Sum over the whole vocabulary, [B, L]."""
        return self.add(jnp.sum(x_BLV, axis=-1))

    def add(self, x: Array) -> Array:
        """The parts of all shards together."""
        return x if self.axis is None else jax.lax.psum(x, self.axis)

    def lse(self, z_BLV: Array) -> Array:
        """log sum exp over the whole vocabulary, fp32 [B, L]."""
        return self.add_log(jax.nn.logsumexp(z_BLV, axis=-1))

    def add_log(self, lse_BL: Array) -> Array:
        """The log-normaliser of all shards from those of each."""
        if self.axis is None:
            return lse_BL
        top_BL = jax.lax.pmax(lse_BL, self.axis)
        return top_BL + jnp.log(jax.lax.psum(jnp.exp(lse_BL - top_BL), self.axis))

    def log_softmax(self, z_BLV: Array) -> Array:
        """Normalised over the whole vocabulary; the maximum goes first, or the rounding of a large lse would stay."""
        top_BL = jax.lax.stop_gradient(self.max(z_BLV))
        shifted_BLV = z_BLV - top_BL[..., None]
        return shifted_BLV - jnp.log(self.sum(jnp.exp(shifted_BLV)))[..., None]

    def max(self, z_BLV: Array) -> Array:
        """The largest over the whole vocabulary, [B, L]."""
        top_BL = jnp.max(z_BLV, axis=-1)
        return top_BL if self.axis is None else jax.lax.pmax(top_BL, self.axis)

    def at(self, id_BL: Array, columns: int) -> Array:
        """bool [B, L, columns]: which column is this id; none where another shard has it."""
        return (
            jax.lax.broadcasted_iota(jnp.int32, (*id_BL.shape, columns), id_BL.ndim) == (id_BL - self.first)[..., None]
        )

    def pick(self, z_BLV: Array, id_BLS: Array, few: int = FEW) -> Array:
        """z at each id, fp32 [B, L, S]; zero at an id that no column has, such as NO_ID.

        `few` is up to how many ids a token every column is compared: 0 where no other pass over them is made.
        """
        columns = z_BLV.shape[-1]
        if id_BLS.shape[-1] <= few:
            picked = [jnp.sum(jnp.where(self.at(id_BL, columns), z_BLV, 0), axis=-1) for id_BL in each_entry(id_BLS)]
            return self.add(jnp.stack(picked, axis=-1) if picked else jnp.zeros(id_BLS.shape, z_BLV.dtype))
        here_BLS, column_BLS = self._columns(id_BLS, columns)
        z_BLS = jnp.take_along_axis(z_BLV, jnp.where(here_BLS, column_BLS, 0), axis=-1)
        return self.add(jnp.where(here_BLS, z_BLS, 0))

    def scatter(self, dz_BLV: Array, id_BLS: Array, dz_BLS: Array) -> Array:
        """dz_BLV with dz_BLS added at the ids; what `pick` gave zero for is dropped."""
        columns = dz_BLV.shape[-1]
        if id_BLS.shape[-1] <= FEW:
            for id_BL, dz_BL in zip(each_entry(id_BLS), each_entry(dz_BLS), strict=True):
                dz_BLV = dz_BLV + jnp.where(self.at(id_BL, columns), dz_BL[..., None], 0)
            return dz_BLV
        here_BLS, column_BLS = self._columns(id_BLS, columns)
        B, L, _ = id_BLS.shape
        rows = (jnp.arange(B)[:, None, None], jnp.arange(L)[:, None])
        return dz_BLV.at[*rows, jnp.where(here_BLS, column_BLS, columns)].add(dz_BLS, mode="drop")

    def _columns(self, id_BLS: Array, columns: int) -> tuple[Array, Array]:
        """(whether this shard has the id, its column); NO_ID less `first` is still past every column."""
        column_BLS = id_BLS - self.first
        return (column_BLS >= 0) & (column_BLS < columns), column_BLS


def each_entry(x_BLS: Array) -> list[Array]:
    """[B, L, S] as S arrays [B, L]."""
    return [x_BLS[..., s] for s in range(x_BLS.shape[-1])]


WHOLE = Vocabulary()
