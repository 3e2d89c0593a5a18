"""Mosaic GPU kernel: log-normalisers of a head without its logits, for teachers, evaluation and recomputation.

Forward only. One matmul pass, whose every tile of logits leaves as two numbers a token: the maximum and the sum of
exp(z - maximum) of each bin of 128 consecutive rows of the vocabulary. The normaliser follows from them, and so does
where the largest logits and the probability mass lie.

A block of threads is one warpgroup that fetches tiles by TMA and two that multiply them (`wgmma`), each its own bin.
The blocks are as many as the chip has multiprocessors and walk through all tiles in an order that keeps the rows of the
vocabulary in the L2 cache.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.linear_heads.blocks import LANES, GpuBlocks, gpu_blocks

WARPGROUPS = 2
"""Warpgroups that multiply; one more fetches."""
LOG2_E = 1.4426950408889634  # the hardware has exp2, and one factor serves the change of base


def normaliser(
    h_TD: Array,
    w_VD: Array,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: Array | int,
    blocks: GpuBlocks | None = None,
    interpret=None,
) -> Array:
    """lse_T = log sum_v exp(z_TV), fp32, for z = softcap(scale h w^T); arguments and errors as `bins`."""
    max_TX, sumexp_TX = bins(
        h_TD, w_VD, scale=scale, softcap=softcap, vocab_size=vocab_size, blocks=blocks, interpret=interpret
    )
    highest_T1 = jnp.max(max_TX, axis=1, keepdims=True)
    return highest_T1[:, 0] + jnp.log(jnp.sum(sumexp_TX * jnp.exp(max_TX - highest_T1), axis=1))


def bins(
    h_TD: Array,
    w_VD: Array,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: Array | int,
    blocks: GpuBlocks | None = None,
    interpret=None,
) -> tuple[Array, Array]:
    """Maximum and sum of exp(z - maximum) of every bin of 128 logits; X = ceil(V / 128) bins.

    Needs Hopper or newer (wgmma and TMA).

    Args:
      h_TD, w_VD: bfloat16; D a multiple of `blocks.depth` (64).
      scale, softcap: as a Head has them.
      vocab_size: real rows of `w_VD`, possibly traced.
      blocks: sizes for the chip; None takes those of `blocks.for_device`.
      interpret: a plgpu.InterpretGPUParams(...) to run on a CPU (jax >= 0.11).

    Returns:
      max_TX: fp32; MASKED for a bin without a real row.
      sumexp_TX: fp32, at least 1.

    Raises:
      InputError: another type, a width that no stage divides, or a device without these blocks.
    """
    (T, D), V = h_TD.shape, w_VD.shape[0]
    blocks = gpu_blocks(blocks)
    if h_TD.dtype != jnp.bfloat16 or w_VD.dtype != jnp.bfloat16:
        raise InputError(f"the GPU kernel multiplies bfloat16, and h is {h_TD.dtype}, w is {w_VD.dtype}")
    if D % blocks.depth:
        raise InputError(f"D={D} is no multiple of {blocks.depth}, the columns of a pipeline stage")
    h_TD = jnp.pad(h_TD, ((0, -T % blocks.tokens), (0, 0)))
    num_bins = pl.cdiv(V, WARPGROUPS * LANES) * WARPGROUPS
    max_XT, sumexp_XT = plgpu.kernel(
        functools.partial(_kernel, blocks=blocks, scale=scale, softcap=softcap),
        kernel_name="jaxdistill_bins",
        out_type=[jax.ShapeDtypeStruct((num_bins, h_TD.shape[0]), jnp.float32)] * 2,
        grid=(blocks.multiprocessors,),
        grid_names=("multiprocessor",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        **({} if interpret is None else {"interpret": interpret}),
    )(h_TD, w_VD, jnp.minimum(vocab_size, V)[None])
    return max_XT[: pl.cdiv(V, LANES), :T].T, sumexp_XT[: pl.cdiv(V, LANES), :T].T


def _kernel(h_ref, w_ref, limit_ref, max_ref, sumexp_ref, *, blocks, scale, softcap):
    tokens, columns = blocks.tokens, WARPGROUPS * LANES
    (T, D), V = h_ref.shape, w_ref.shape[0]
    tiles = (T // tokens, pl.cdiv(V, columns))
    warpgroup = jax.lax.axis_index("warpgroup")

    def multiply(_, h_tile, w_tile, z_ref):
        plgpu.wgmma(z_ref, h_tile, _transpose(w_tile.at[pl.ds(warpgroup * LANES, LANES)]))
        plgpu.wgmma_wait(0)
        return z_ref

    def pipeline(compute_context):
        return plgpu.emit_pipeline_warp_specialized(
            multiply,
            grid=(D // blocks.depth,),
            in_specs=[_stage(tokens, blocks.depth), _stage(columns, blocks.depth)],
            memory_registers=40,  # the fetching warpgroup needs few; the others get the rest for their tiles of logits
            wg_axis="warpgroup",
            num_compute_wgs=WARPGROUPS,
            max_concurrent_steps=blocks.stages,
            compute_context=compute_context,
        )

    @functools.partial(
        pl.run_scoped,
        stages=pipeline(lambda _: None).get_allocations(h_ref, w_ref),
        max_tile=plgpu.SMEM((WARPGROUPS, tokens), jnp.float32),
        sumexp_tile=plgpu.SMEM((WARPGROUPS, tokens), jnp.float32),
        collective_axes="warpgroup",
    )
    def _(stages, max_tile, sumexp_tile):
        @plgpu.nd_loop((tiles[0] * tiles[1],), collective_axes="multiprocessor")
        def _(loop):
            i, j = plgpu.planar_snake(loop.index[0], tiles, 0, blocks.group)
            here = pl.ds(i * tokens, tokens)

            def tile(run_pipeline):
                @functools.partial(pl.run_scoped, z_ref=plgpu.ACC((tokens, LANES), jnp.float32))
                def _(z_ref):
                    run_pipeline(z_ref)
                    bin = j * WARPGROUPS + warpgroup
                    z = _finish(z_ref[...], bin * LANES, limit_ref[0], scale, softcap)
                    maximum = jnp.max(z, axis=1)
                    p = jnp.exp2((z - jax.lax.broadcast_in_dim(maximum, z.shape, [0])) * LOG2_E)
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # until the last tile's numbers have left
                    max_tile[warpgroup] = maximum
                    sumexp_tile[warpgroup] = jnp.sum(p, axis=1)
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(max_tile.at[warpgroup], max_ref.at[bin, here])
                    plgpu.copy_smem_to_gmem(sumexp_tile.at[warpgroup], sumexp_ref.at[bin, here])

            rows = pl.ds(j * columns, columns)
            pipeline(tile)(h_ref.at[here, :], w_ref.at[rows, :], allocations=stages)

    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _stage(rows: int, depth: int) -> plgpu.BlockSpec:
    """What one step of the pipeline fetches, laid out as wgmma reads it without bank conflicts."""
    swizzle = plgpu.find_swizzle(depth * 16)  # bits in a row of bfloat16
    transforms = (plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle))
    return plgpu.BlockSpec((rows, depth), lambda step: (0, step), transforms=transforms, memory_space=plgpu.SMEM)


def _finish(product: Array, first: Array, limit: Array, scale: float, softcap: float | None) -> Array:
    """A tile of logits from its product: scale, soft-cap, and a mask past the vocabulary."""
    z = product if scale == 1.0 else scale * product
    if softcap is not None:
        z = softcap * jnp.tanh(z * (1.0 / softcap))
    column = plgpu.broadcasted_iota(jnp.int32, z.shape, 1, layout=plgpu.Layout.WGMMA) + first
    return jnp.where(column < limit, z, MASKED)


def _transpose(ref):
    """Written as a function before jax 0.11 and as a method after it."""
    return ref.transpose((1, 0)) if hasattr(ref, "transpose") else plgpu.transpose_ref(ref, (1, 0))
