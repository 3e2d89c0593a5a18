"""TPU kernels beside XLA's matmuls: what a sparse loss needs from a finished chunk of logits, one read each way.

Every sparse loss is a function of the log-normaliser and of the logits at a few ids, so these two kernels know no loss:
`statistics` gives both, and `gradient` takes their cotangents back to the logits. They work on transposed logits; XLA
lays out its matmul's result accordingly, so that no logits are moved.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxdistill.head import MASKED
from jaxdistill.losses.linear_heads.blocks import TpuBlocks, tpu_blocks
from jaxdistill.losses.linear_heads.sparse import pallas_tpu_tile as tile


def statistics(
    z_TV: Array, id_TS: Array, *, temperature: float = 1.0, blocks: TpuBlocks | None = None, interpret=False
) -> tuple[Array, Array]:
    """lse_T = log sum_v exp(z_TV / temperature), and z_TS, the logits at the ids.

    Args:
      z_TV: fp32 logits, finished: soft-capped, and masked where the vocabulary is padded.
      id_TS: int32, ascending for each token; an id outside [0, V) picks 0.
      temperature: divides the logits inside lse_T, not those picked.
      blocks: sizes for the chip; None takes those of `blocks.for_device`.
      interpret: True or pltpu.InterpretParams(...) to run on a CPU.

    Returns:
      lse_T: fp32 [T].
      z_TS: fp32 [T, S].

    Raises:
      InputError: no blocks are given, and none are known for the device.
    """
    (T, V), blocks = z_TV.shape, tpu_blocks(blocks)
    grid = tile.Grid.over(T, V, blocks.elementwise)
    id_ST = tile.known_ids(id_TS, V, grid.tokens)
    S = id_ST.shape[0]
    lse_1T, z_ST = pl.pallas_call(
        functools.partial(_statistics, vocab_size=V, temperature=temperature),
        name="jaxdistill_sparse_statistics",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid.shape,
            in_specs=[_logits(grid), grid.per_token(S)],
            out_specs=[grid.per_token(1), grid.per_token(S)],
            scratch_shapes=grid.running(),
        ),
        out_shape=[jax.ShapeDtypeStruct((1, T), jnp.float32), jax.ShapeDtypeStruct((S, T), jnp.float32)],
        compiler_params=tile.parameters(blocks),
        cost_estimate=pl.CostEstimate(flops=5 * T * V, transcendentals=T * V, bytes_accessed=4 * T * (V + 2 * S)),
        interpret=interpret,
    )(tile.count_trips(id_ST, grid.tokens, grid.bands), z_TV.T, id_ST)
    return lse_1T[0], z_ST[: id_TS.shape[1]].T


def _statistics(trips_ref, z_ref, id_ref, lse_ref, picked_ref, maximum_ref, total_ref, *, vocab_size, temperature):
    i, j = pl.program_id(0), pl.program_id(1)
    bands = z_ref.shape[0] // tile.BAND

    @pl.when(j == 0)
    def _():
        tile.start(maximum_ref, total_ref, picked_ref)

    @pl.loop(0, bands)
    def _(at):
        band = j * bands + at
        z = z_ref[tile.rows(at), :]
        if vocab_size % z_ref.shape[0]:  # the last block reaches past the vocabulary, into whatever memory holds
            z = jnp.where(tile.within(z.shape, band * tile.BAND, vocab_size), z, MASKED)
        tile.accumulate(maximum_ref, total_ref, tile.temper(z, temperature))
        tile.pick(picked_ref, z_ref.at[tile.rows(at), :], id_ref, band, trips_ref[i, band])

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        lse_ref[...] = tile.normaliser(maximum_ref, total_ref)


def gradient(
    z_TV: Array,
    id_TS: Array,
    lse_T: Array,
    dlse_T: Array,
    dz_TS: Array,
    *,
    dtype: jnp.dtype | type,
    temperature: float = 1.0,
    blocks: TpuBlocks | None = None,
    interpret=False,
) -> Array:
    """The cotangent of the logits, dlse_T / temperature * exp(z_TV / temperature - lse_T) + dz_TS at the ids.

    Args:
      z_TV, id_TS, temperature, blocks, interpret: as `statistics` takes them.
      lse_T: fp32, as `statistics` gives it, or over all shards of the vocabulary.
      dlse_T, dz_TS: fp32 cotangents; those of equal ids add, those of ids outside [0, V) go nowhere.
      dtype: of the result, float32 or bfloat16; the sum is formed in fp32.

    Returns:
      dz_TV: [T, V] in `dtype`.

    Raises:
      InputError: as `statistics`.
    """
    (T, V), blocks = z_TV.shape, tpu_blocks(blocks)
    grid = tile.Grid.over(T, V, blocks.elementwise)
    id_ST = tile.known_ids(id_TS, V, grid.tokens)
    S, moved = id_ST.shape[0], T * V * (4 + jnp.dtype(dtype).itemsize)
    dz_VT = pl.pallas_call(
        functools.partial(_gradient, temperature=temperature),
        name="jaxdistill_sparse_gradient",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid.shape,
            in_specs=[_logits(grid), *(grid.per_token(rows) for rows in (S, S, 1, 1))],
            out_specs=_logits(grid),
            scratch_shapes=[pltpu.VMEM((tile.BAND, grid.tokens), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((V, T), dtype),
        compiler_params=tile.parameters(blocks),
        cost_estimate=pl.CostEstimate(flops=4 * T * V, transcendentals=T * V, bytes_accessed=moved + 8 * T * S),
        interpret=interpret,
    )(
        tile.count_trips(id_ST, grid.tokens, grid.bands),
        z_TV.T,
        id_ST,
        tile.pad(dz_TS.T, *id_ST.shape),
        lse_T[None],
        dlse_T[None] / temperature,
    )
    return dz_VT.T


def _gradient(trips_ref, z_ref, id_ref, dpicked_ref, lse_ref, dlse_ref, dz_ref, band_ref, *, temperature):
    i, j = pl.program_id(0), pl.program_id(1)
    bands = z_ref.shape[0] // tile.BAND

    @pl.loop(0, bands)
    def _(at):
        band = j * bands + at
        z = tile.temper(z_ref[tile.rows(at), :], temperature)
        band_ref[...] = dlse_ref[...] * jnp.exp(z - lse_ref[...])
        tile.scatter(band_ref, id_ref, dpicked_ref, band, trips_ref[i, band])
        dz_ref[tile.rows(at), :] = band_ref[...].astype(dz_ref.dtype)


def _logits(grid: tile.Grid) -> pl.BlockSpec:
    """A tile of transposed logits."""
    return pl.BlockSpec((grid.vocabulary, grid.tokens), lambda i, j, _: (j, i))
