"""TPU kernel with the matmul inside: log-normaliser and picked logits, and not one logit in HBM.

With `pallas_tpu_backward` the lean pair. Together they take four matmul passes, the logits being formed twice: one more
than a loss that forms its gradients with the logits, and no memory grows with T V.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.linear_heads.blocks import LANES, MIB, TpuBlocks, tpu_blocks
from jaxdistill.losses.linear_heads.sparse import pallas_tpu_tile as tile


def forward(
    h_TD: Array,
    w_VD: Array,
    bias_V: Array | None,
    id_TS: Array,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: Array | int,
    temperature: float = 1.0,
    blocks: TpuBlocks | None = None,
    interpret=False,
) -> tuple[Array, Array]:
    """lse_T = log sum_v exp(z_TV / temperature) and z_TS, for z = softcap(scale h w^T + bias) in fp32.

    Args:
      h_TD, w_VD: hidden states and output embedding, both float32 or both bfloat16; products accumulate in fp32, and
        float32 operands are multiplied at `jax_default_matmul_precision`, as everywhere.
      bias_V: fp32, or None.
      id_TS: int32, ascending for each token; an id outside [0, min(V, vocab_size)) picks 0.
      scale, softcap: as a Head has them.
      vocab_size: real rows of `w_VD`; may be traced, and not positive on a shard past the vocabulary.
      temperature: divides the logits inside lse_T, not those picked.
      blocks: sizes for the chip; None takes those of `blocks.for_device`.
      interpret: True or pltpu.InterpretParams(...) to run on a CPU.

    Returns:
      lse_T: fp32 [T]; near MASKED where no row is real.
      z_TS: fp32 [T, S].

    Raises:
      InputError: operands of two types, blocks that VMEM does not hold at this width, or none known for the device.
    """
    (T, D), V, blocks = h_TD.shape, w_VD.shape[0], tpu_blocks(blocks)
    grid = tile.Grid.over(T, V, blocks.forward)
    size = require_type(h_TD, w_VD)
    require_room(2 * (grid.tokens + grid.vocabulary) * D * size + 8 * grid.tokens * grid.vocabulary, D, blocks)
    limit = jnp.minimum(vocab_size, V)
    id_ST = tile.known_ids(id_TS, limit, grid.tokens)
    S = id_ST.shape[0]
    of_bias = None if bias_V is None else pl.BlockSpec((1, grid.vocabulary), lambda i, j, *_: (0, j))
    lse_1T, z_ST = pl.pallas_call(
        functools.partial(_forward, finish=Finish(scale, softcap), temperature=temperature),
        name="jaxdistill_sparse_forward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid.shape,
            in_specs=[
                pl.BlockSpec((grid.tokens, D), lambda i, j, *_: (i, 0)),
                pl.BlockSpec((grid.vocabulary, D), lambda i, j, *_: (j, 0)),
                of_bias,
                grid.per_token(S),
            ],
            out_specs=[grid.per_token(1), grid.per_token(S)],
            scratch_shapes=[pltpu.VMEM((grid.vocabulary, grid.tokens), jnp.float32), *grid.running()],
        ),
        out_shape=[jax.ShapeDtypeStruct((1, T), jnp.float32), jax.ShapeDtypeStruct((S, T), jnp.float32)],
        compiler_params=tile.parameters(blocks),
        cost_estimate=pl.CostEstimate(
            flops=2 * T * D * V, transcendentals=T * V, bytes_accessed=(grid.shape[0] * V + T) * D * size
        ),
        interpret=interpret,
    )(
        limit[None],
        tile.count_trips(id_ST, grid.tokens, grid.bands),
        h_TD,
        w_VD,
        bias_row(bias_V, grid.bands * tile.BAND),
        id_ST,
    )
    return lse_1T[0], z_ST[: id_TS.shape[1]].T


def _forward(
    limit_ref,
    trips_ref,
    h_ref,
    w_ref,
    bias_ref,
    id_ref,
    lse_ref,
    picked_ref,
    z_ref,
    maximum_ref,
    total_ref,
    *,
    finish,
    temperature,
):
    i, j = pl.program_id(0), pl.program_id(1)
    vocabulary = w_ref.shape[0]
    bands = vocabulary // tile.BAND

    @pl.when(j == 0)
    def _():
        tile.start(maximum_ref, total_ref, picked_ref)

    z = finish.logits(w_ref[...], h_ref[...], bias_ref)
    z = jnp.where(tile.within(z.shape, j * vocabulary, limit_ref[0]), z, MASKED)
    z_ref[...] = z
    tile.accumulate(maximum_ref, total_ref, tile.temper(z, temperature))

    @pl.loop(0, bands)
    def _(at):
        band = j * bands + at
        tile.pick(picked_ref, z_ref.at[tile.rows(at), :], id_ref, band, trips_ref[i, band])

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        lse_ref[...] = tile.normaliser(maximum_ref, total_ref)


@dataclasses.dataclass(frozen=True)
class Finish:
    """What makes logits of products, less the mask: z = softcap(scale product + bias), as `Head.finish`."""

    scale: float
    softcap: float | None

    def logits(self, w: Array, h: Array, bias_ref) -> Array:
        """A transposed tile, fp32 [columns, tokens], of rows of w and h."""
        z = self.scale * dot(w, h, 1, 1)
        if bias_ref is not None:
            z += _as_column(bias_ref[...], z.shape[1])
        return z if self.softcap is None else self.softcap * jnp.tanh(z / self.softcap)


def dot(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """The matmul over these axes, accumulated in fp32."""
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _as_column(row: Array, width: int) -> Array:
    """[1, columns] -> [columns, width], by transposing one square for each band."""
    squares = [jnp.broadcast_to(row[:, at : at + LANES], (LANES, LANES)).T for at in range(0, row.shape[1], LANES)]
    return jnp.tile(jnp.concatenate(squares), (1, width // LANES))


def bias_row(bias_V: Array | None, width: int) -> Array | None:
    """The bias as a row, which ends in zeros and not in whatever memory holds."""
    return None if bias_V is None else tile.pad(bias_V[None].astype(jnp.float32), 1, width)


def require_type(h_TD: Array, w_VD: Array) -> int:
    """Bytes in a number of the operands' one type; InputError where they have two, or another one."""
    if h_TD.dtype != w_VD.dtype or h_TD.dtype not in (jnp.float32, jnp.bfloat16):
        raise InputError(f"h is {h_TD.dtype} and w is {w_VD.dtype}: give both in one type, float32 or bfloat16")
    return h_TD.dtype.itemsize


def require_room(needed: int, D: int, blocks: TpuBlocks) -> None:
    """InputError where the blocks of a kernel take more VMEM than it may."""
    if needed > blocks.vmem_bytes:
        raise InputError(
            f"at D={D} these blocks need {needed / MIB:.0f} MiB of VMEM where a kernel may take "
            f"{blocks.vmem_bytes / MIB:.0f} MiB: pass blocks=... with smaller ones"
        )
