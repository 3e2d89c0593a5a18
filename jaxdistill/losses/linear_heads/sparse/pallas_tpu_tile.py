"""What the TPU kernels do with a tile of logits: running statistics, picking and scattering at sorted ids.

A tile is transposed, [columns, tokens]: the vocabulary on a register's 8 sublanes, tokens on its 128 lanes. What
belongs to a token (its log-normaliser, its ids) then fills whole registers and spreads over the vocabulary for nothing,
where a tile with tokens on the sublanes would permute lanes for each.

Ids are ascending. So the few that a token has in a band of the vocabulary are neighbours in its list, and the work
grows with how many a band holds, not with S.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxdistill.head import MASKED
from jaxdistill.losses.linear_heads.blocks import LANES, Tile, TpuBlocks
from jaxdistill.losses.targets import NO_ID

SUBLANES = 8
BAND = 128
"""Columns of the vocabulary that are searched for ids together."""


def round_up(size: int, unit: int) -> int:
    """The least multiple of `unit` that holds `size`."""
    return -(-size // unit) * unit


def pad(x: Array, *sizes: int, value: float = 0) -> Array:
    """`x` filled up to these sizes."""
    return jnp.pad(x, [(0, new - old) for new, old in zip(sizes, x.shape, strict=True)], constant_values=value)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Steps over [T, V] logits in tiles of `vocabulary` x `tokens`: all of the vocabulary for one block of tokens, then
    for the next. A tile is no larger than the logits are, rounded up to registers."""

    tokens: int
    vocabulary: int
    shape: tuple[int, int]

    @classmethod
    def over(cls, T: int, V: int, tile: Tile) -> "Grid":
        tokens, vocabulary = min(tile.tokens, round_up(T, LANES)), min(tile.vocabulary, round_up(V, BAND))
        return cls(tokens, vocabulary, (pl.cdiv(T, tokens), pl.cdiv(V, vocabulary)))

    @property
    def bands(self) -> int:
        return self.shape[1] * (self.vocabulary // BAND)

    def per_token(self, rows: int) -> pl.BlockSpec:
        """A block of an array [rows, T], the same for the whole vocabulary."""
        return pl.BlockSpec((rows, self.tokens), lambda i, j, *_: (0, i))

    def running(self) -> list:
        """Scratch for the statistics of `accumulate`."""
        return [pltpu.VMEM((SUBLANES, self.tokens), jnp.float32)] * 2


def known_ids(id_TS: Array, vocab_size: Array | int, tokens: int) -> Array:
    """Ids as the kernels want them, [S, T]: whole registers of S, whole blocks of `tokens`, and NO_ID for what lies
    past the vocabulary, which keeps them sorted."""
    T, S = id_TS.shape
    known_TS = jnp.where(id_TS < vocab_size, id_TS, NO_ID)
    return pad(known_TS.T, round_up(S, SUBLANES), round_up(T, tokens), value=NO_ID)


def count_trips(id_ST: Array, tokens: int, bands: int) -> Array:
    """The most ids that one token of a block has in each band: int32 [T / tokens, bands].

    XLA counts them before the kernel starts, since a vector is slow to become a scalar inside it.
    """
    bounds = jnp.arange(bands + 1) * BAND
    below_TX = jnp.sum(id_ST.T[:, :, None] < bounds, axis=1, dtype=jnp.int32)
    return jnp.max(jnp.diff(below_TX).reshape(-1, tokens, bands), axis=1)


def parameters(blocks: TpuBlocks) -> pltpu.CompilerParams:
    """The first dimension of the grid may be shared by two cores; the second is walked in order."""
    return pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=blocks.vmem_bytes)


def rows(band: Array) -> slice | pl.Slice:
    """The columns of the vocabulary in a band, which are rows of a tile."""
    return pl.ds(pl.multiple_of(band * BAND, BAND), BAND)


def temper(z: Array, temperature: float) -> Array:
    """z / temperature; at 1, which most losses use, not even a multiplication."""
    return z if temperature == 1.0 else z * (1.0 / temperature)


def within(shape: tuple[int, int], first: Array, vocab_size: Array | int) -> Array:
    """Which entries of a tile whose first column is `first` belong to the vocabulary."""
    return first + jax.lax.broadcasted_iota(jnp.int32, shape, 0) < vocab_size


def accumulate(maximum_ref, total_ref, z: Array) -> None:
    """Add the columns of `z` to a maximum and a sum of exp(z - maximum): the online softmax of Milakov and Gimelshein
    (2018), one for each sublane, [8, tokens]. Sublanes meet in `normaliser`, once, after the whole vocabulary."""
    z = z.reshape(-1, *maximum_ref.shape)
    maximum = jnp.maximum(maximum_ref[...], jnp.max(z, axis=0))
    total_ref[...] = total_ref[...] * jnp.exp(maximum_ref[...] - maximum) + jnp.sum(jnp.exp(z - maximum), axis=0)
    maximum_ref[...] = maximum


def normaliser(maximum_ref, total_ref) -> Array:
    """The sublanes' statistics as one log-sum-exp a token, [1, tokens]."""
    maximum = jnp.max(maximum_ref[...], axis=0, keepdims=True)
    return maximum + jnp.log(jnp.sum(total_ref[...] * jnp.exp(maximum_ref[...] - maximum), axis=0, keepdims=True))


def start(maximum_ref, total_ref, picked_ref) -> None:
    """Statistics of no logits. The maximum is a masked logit, which stays finite where a shard has no real row."""
    maximum_ref[...] = jnp.full(maximum_ref.shape, MASKED, jnp.float32)
    total_ref[...] = jnp.zeros_like(total_ref)
    picked_ref[...] = jnp.zeros_like(picked_ref)


def pick(picked_ref, tile_ref, id_ref, band: Array, trips: Array) -> None:
    """Add the logits of one band, [128, tokens], to `picked_ref`, [S, tokens], where their ids stand in `id_ref`.

    A trip looks up one id of every token.
    """
    before = _before(id_ref, band)

    @pl.loop(0, trips)
    def _(trip):
        chosen = _entry(id_ref, before + trip)
        row = _sum(chosen, id_ref[...]) - band * BAND
        picked_ref[...] += jnp.where(chosen, _sum(_is_row(row), tile_ref[...]), 0.0)


def scatter(tile_ref, id_ref, value_ref, band: Array, trips: Array) -> None:
    """Add `value_ref`, [S, tokens], to one band, [128, tokens], at the ids of `id_ref`; the reverse of `pick`."""
    before = _before(id_ref, band)

    @pl.loop(0, trips)
    def _(trip):
        chosen = _entry(id_ref, before + trip)
        row = _sum(chosen, id_ref[...]) - band * BAND
        tile_ref[...] += jnp.where(_is_row(row), _sum(chosen, value_ref[...]), 0.0)


def _before(id_ref, band: Array) -> Array:
    """How many of each token's ids come before the band, [1, tokens]."""
    return jnp.sum((id_ref[...] < band * BAND).astype(jnp.int32), axis=0, keepdims=True)


def _entry(id_ref, index: Array) -> Array:
    """Marks entry index[t] of each token's list; none where the list is shorter, and no sum over it is then but 0."""
    return jax.lax.broadcasted_iota(jnp.int32, id_ref.shape, 0) == index


def _is_row(row: Array) -> Array:
    """Marks row[t] of a band; none where the id belongs to a later band."""
    return jax.lax.broadcasted_iota(jnp.int32, (BAND, row.shape[1]), 0) == row


def _sum(chosen: Array, x: Array) -> Array:
    """The sum of x over what is chosen for each token, [1, tokens]."""
    return jnp.sum(jnp.where(chosen, x, jnp.zeros_like(x)), axis=0, keepdims=True)
