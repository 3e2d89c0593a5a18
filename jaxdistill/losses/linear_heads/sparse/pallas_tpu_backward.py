"""TPU kernel for the gradient of the lean forward: logits formed again in VMEM, and multiplied out at once.

One call takes a chunk of tokens. Its dh, fp32, stays in VMEM while the vocabulary passes by once, and each tile of dW
is read and written once a chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxdistill.losses.linear_heads.blocks import LANES, TpuBlocks, tpu_blocks
from jaxdistill.losses.linear_heads.sparse import pallas_tpu_tile as tile
from jaxdistill.losses.linear_heads.sparse.pallas_tpu_forward import Finish, bias_row, dot, require_room, require_type


def backward(
    h_TD: Array,
    w_VD: Array,
    bias_V: Array | None,
    id_TS: Array,
    lse_T: Array,
    dlse_T: Array,
    dz_TS: Array,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: Array | int,
    temperature: float = 1.0,
    blocks: TpuBlocks | None = None,
    interpret=False,
) -> tuple[Array, Array, Array | None]:
    """The cotangents of `forward`'s operands for those of its results.

    dz = dlse_T / temperature * exp(z / temperature - lse_T) + dz_TS at the ids is formed in fp32, taken back through
    soft-cap and scale, and rounded to the operands' type for its two matmuls, as XLA would.

    Args:
      h_TD, w_VD, bias_V, id_TS and keywords: as `forward` took them.
      lse_T: fp32, as `forward` gave it, or over all shards of the vocabulary.
      dlse_T, dz_TS: fp32 cotangents; those of equal ids add, those of ids that picked 0 go nowhere.

    Returns:
      dh_TD: fp32 [T, D].
      dw_VD: fp32 [V, D], zero past `vocab_size`.
      dbias_V: fp32 [V], or None without a bias.

    Raises:
      InputError: as `forward`.
    """
    (T, D), V, blocks = h_TD.shape, w_VD.shape[0], tpu_blocks(blocks)
    tokens = min(blocks.backward.tokens, tile.round_up(T, LANES))
    chunk = min(blocks.chunk, tile.round_up(T, tokens))
    limit = jnp.minimum(vocab_size, V)
    id_ST = tile.known_ids(id_TS, limit, chunk)
    S, padded = id_ST.shape  # the tokens that fill the last chunk are zero, and so are their cotangents

    def chunks(x_ST: Array) -> Array:
        """[rows, T] -> [chunks, rows, chunk]"""
        return jnp.moveaxis(tile.pad(x_ST, x_ST.shape[0], padded).reshape(x_ST.shape[0], -1, chunk), 1, 0)

    def add(sums, inputs):
        dh_TD, dw_VD, dbias_V = on_chunk(limit, w_VD, bias_V, *inputs, *sums)
        return (dw_VD, dbias_V), dh_TD

    on_chunk = functools.partial(
        _on_chunk, tokens=tokens, finish=Finish(scale, softcap), temperature=temperature, blocks=blocks,
        interpret=interpret,
    )  # fmt: skip
    zeros = jnp.zeros((V, D), jnp.float32), None if bias_V is None else jnp.zeros(V, jnp.float32)
    per_token = id_ST, tile.pad(dz_TS.T, S, T), lse_T[None], dlse_T[None] / temperature
    inputs = tile.pad(h_TD, padded, D).reshape(-1, chunk, D), *map(chunks, per_token)
    (dw_VD, dbias_V), dh = jax.lax.scan(add, zeros, inputs)
    return dh.reshape(padded, D)[:T], dw_VD, dbias_V


def _on_chunk(
    limit,
    w_VD,
    bias_V,
    h_TD,
    id_ST,
    dz_ST,
    lse_1T,
    dlse_1T,
    dw_VD,
    dbias_V,
    *,
    tokens,
    finish,
    temperature,
    blocks,
    interpret,
):
    """(dh_TD, dw_VD, dbias_V) of one chunk of tokens, the latter two added to what they were.

    Two cores halve the vocabulary, each with a dh of its own. Where it does not halve, the second core ends early: its
    last step names the block before once more, so that nothing moves.
    """
    (T, D), V, S = h_TD.shape, w_VD.shape[0], id_ST.shape[0]
    vocabulary = min(blocks.backward.vocabulary, tile.round_up(V, tile.BAND))
    size = require_type(h_TD, w_VD)
    require_room(T * D * (size + 4) + 2 * vocabulary * D * (size + 8) + 8 * vocabulary * tokens, D, blocks)
    steps = pl.cdiv(V, vocabulary)
    cores = min(blocks.cores, steps)
    per_core = pl.cdiv(steps, cores)

    def block(core, step):
        return jnp.minimum(core * per_core + step, steps - 1)

    def whole(rows, columns):
        return pl.BlockSpec((rows, columns), lambda *_: (0, 0), pipeline_mode=pl.Buffered(1))

    of_rows = pl.BlockSpec((vocabulary, D), lambda core, step, *_: (block(core, step), 0))
    of_bias = None if bias_V is None else pl.BlockSpec((1, vocabulary), lambda core, step, *_: (0, block(core, step)))
    dh, dw_VD, dbias_1V = pl.pallas_call(
        functools.partial(_backward, steps=steps, rows=V, tokens=tokens, finish=finish, temperature=temperature),
        name="jaxdistill_sparse_backward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(cores, per_core),
            in_specs=[whole(T, D), of_rows, of_bias, whole(S, T), whole(S, T), whole(1, T), whole(1, T), of_rows],
            out_specs=[
                pl.BlockSpec((1, T, D), lambda core, *_: (core, 0, 0), pipeline_mode=pl.Buffered(1)),
                of_rows,
                of_bias,
            ],
            scratch_shapes=[pltpu.VMEM((vocabulary, tokens), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((cores, T, D), jnp.float32),
            jax.ShapeDtypeStruct((V, D), jnp.float32),
            None if bias_V is None else jax.ShapeDtypeStruct((1, V), jnp.float32),
        ],
        # dW is added to in place. The interpreter gives aliased results their padded shape, so there it is a copy.
        input_output_aliases={} if interpret else {9 - (bias_V is None): 1},
        compiler_params=tile.parameters(blocks),
        cost_estimate=pl.CostEstimate(
            flops=6 * T * D * V, transcendentals=T * V, bytes_accessed=V * D * (size + 8) + T * D * (size + 4 * cores)
        ),
        interpret=interpret,
    )(
        limit[None],
        tile.count_trips(id_ST, tokens, steps * (vocabulary // tile.BAND)),
        h_TD,
        w_VD,
        bias_row(bias_V, steps * vocabulary),
        id_ST,
        dz_ST,
        lse_1T,
        dlse_1T,
        dw_VD,
    )
    return jnp.sum(dh, axis=0), dw_VD, None if bias_V is None else dbias_V + dbias_1V[0]


def _backward(
    limit_ref,
    trips_ref,
    h_ref,
    w_ref,
    bias_ref,
    id_ref,
    dpicked_ref,
    lse_ref,
    dlse_ref,
    old_dw_ref,
    dh_ref,
    dw_ref,
    dbias_ref,
    dz_ref,
    *,
    steps,
    rows,
    tokens,
    finish,
    temperature,
):
    step = pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)
    vocabulary = w_ref.shape[0]

    @pl.when(pl.program_id(1) == 0)
    def _():
        dh_ref[...] = jnp.zeros_like(dh_ref)

    def w() -> Array:
        """The rows of this step. Past the last one memory may hold NaN, which no zero of dz would undo."""
        if rows % vocabulary == 0:
            return w_ref[...]
        real = tile.within(w_ref.shape, step * vocabulary, rows)
        return jnp.where(real, w_ref[...], jnp.zeros_like(w_ref))

    @pl.when(step < steps)
    def _():
        dw_ref[...] = old_dw_ref[...]
        if dbias_ref is not None:
            dbias_ref[...] = jnp.zeros_like(dbias_ref)

        @pl.loop(0, h_ref.shape[0] // tokens)
        def _(at):
            here = pl.ds(pl.multiple_of(at * tokens, tokens), tokens)
            h = h_ref[here, :]
            z = finish.logits(w(), h, bias_ref)
            p = jnp.exp(tile.temper(z, temperature) - lse_ref[:, here])
            real = tile.within(z.shape, step * vocabulary, limit_ref[0])
            dz_ref[...] = jnp.where(real, dlse_ref[:, here] * p, 0.0)
            _scatter(dz_ref, id_ref.at[:, here], dpicked_ref.at[:, here], step, trips_ref, at)
            dz = dz_ref[...] if finish.softcap is None else dz_ref[...] * (1.0 - (z / finish.softcap) ** 2)
            if dbias_ref is not None:
                dbias_ref[...] += _sum_over_tokens(dz)
            dproduct = (finish.scale * dz).astype(h.dtype)
            dh_ref[0, here, :] += dot(dproduct, w(), 0, 0)
            dw_ref[...] += dot(dproduct, h, 1, 0)


def _scatter(dz_ref, id_ref, dpicked_ref, step, trips_ref, tokens) -> None:
    """The cotangents of the picked logits, added band by band."""
    bands = dz_ref.shape[0] // tile.BAND

    @pl.loop(0, bands)
    def _(at):
        band = step * bands + at
        tile.scatter(dz_ref.at[tile.rows(at), :], id_ref, dpicked_ref, band, trips_ref[tokens, band])


def _sum_over_tokens(dz: Array) -> Array:
    """[columns, tokens] -> [1, columns], by transposing one square for each band."""
    folded = functools.reduce(jnp.add, jnp.split(dz, dz.shape[1] // LANES, axis=1))
    squares = jnp.split(folded, dz.shape[0] // LANES)
    return jnp.concatenate([jnp.sum(square.T, axis=0, keepdims=True) for square in squares], axis=1)
