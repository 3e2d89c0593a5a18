"""Attention by JAX's splash kernels for TPU: no scores in main memory, and blocks that the mask hides are not visited.

The kernels are compiled for one device, so `shard.local` gives them each device's sequences, heads and queries. A CPU
interprets them, which is for tests.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill import device
from jaxdistill.shard import Shard

LANES = 128  # blocks of positions are multiples of a register's width
BLOCK = 512


def serves(length: int, shard: Shard) -> bool:
    """Whether the kernels take sequences of this length: every device's queries are whole blocks."""
    return length % (LANES * shard.parts("L", "BL")) == 0


def attend(
    q_BLHK: Array,
    k_BLJK: Array,
    v_BLJK: Array,
    segment_BL: Array | None,
    shard: Shard,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> Array:
    """The values under the probabilities, [B, L, H, K] in their dtype: causal, inside segments and the window.

    L must be as `serves` has it. Where devices share out the positions, each gathers all keys and values for its own
    queries; the last of them has the most to do.
    """
    B, L, _, _ = q_BLHK.shape
    segment_BL = jnp.zeros((B, L), jnp.int32) if segment_BL is None else segment_BL
    scaled_BLHK = (scale * q_BLHK.astype(jnp.float32)).astype(q_BLHK.dtype)  # the kernels have no scale

    def on_device(q_BLHK: Array, k_BLJK: Array, v_BLJK: Array, segment_BL: Array) -> Array:
        from jax.experimental.pallas.ops.tpu import splash_attention as splash  # costs every process its import

        k_BMJK, v_BMJK = (shard.gather(x, "BLJK", "L") for x in (k_BLJK, v_BLJK))
        segment_BM = shard.gather(segment_BL, "BL", "L")
        parts = shard.parts("L", "BL")
        kernel = _part(_kernel(q_BLHK.shape[2], L, parts, softcap, window), shard.part("L", "BL"), parts)
        by_head = (x.swapaxes(1, 2) for x in (q_BLHK, k_BMJK, v_BMJK))
        mixed = jax.vmap(lambda q, k, v, of_q, of_k: kernel(q, k, v, splash.SegmentIds(of_q, of_k)))
        return mixed(*by_head, segment_BL, segment_BM).swapaxes(1, 2)

    arrays = {"q_BLHK": scaled_BLHK, "k_BLJK": k_BLJK, "v_BLJK": v_BLJK, "segment_BL": segment_BL}
    return shard.local(on_device, "BLHK", opaque=True, **arrays)


def _part(kernel: Any, part: Array | int, parts: int) -> Any:
    """The kernel for one part of the queries. Its arrays say which blocks to visit, [1, blocks of queries, blocks of
    keys], and which positions the queries have, [L]; both hold the parts one after another."""

    def cut(x: Array) -> Array:
        axis = 1 if x.ndim == 3 else 0
        size = x.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(x, part * size, size, axis)

    return kernel if parts == 1 else jax.tree.map(cut, kernel)


def _kernel(heads: int, length: int, parts: int, softcap: float | None, window: int | None):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (length, length)
    mask = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    size = max(block for block in range(LANES, BLOCK + 1, LANES) if length // parts % block == 0)
    blocks: dict[str, Any] = dict.fromkeys(
        ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), size
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**blocks),
        head_shards=1,
        q_seq_shards=parts,
        attn_logits_soft_cap=softcap,
        interpret=device.platform() != "tpu",
    )
