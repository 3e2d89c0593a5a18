"""Attention by JAX's splash kernels for TPU: no scores in main memory, and blocks that the mask hides are not visited.

The kernels are compiled for one device, so `shard.local` gives them each device's sequences and heads. A CPU interprets
them, which is for tests.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill import device
from jaxdistill.shard import Shard

LANES = 128  # blocks of positions are multiples of a register's width
BLOCK = 512


def serves(length: int) -> bool:
    """Whether the kernels take sequences of this length: in whole blocks."""
    return length % LANES == 0


def attend(
    q_BLHK: Array,
    k_BMJK: Array,
    v_BMJK: Array,
    segment_BL: Array | None,
    shard: Shard,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> Array:
    """The values under the probabilities, [B, L, H, K] in their dtype: causal, inside segments and the window.

    L must be a multiple of LANES, as `serves` has it.
    """
    B, L, _, _ = q_BLHK.shape
    segment_BL = jnp.zeros((B, L), jnp.int32) if segment_BL is None else segment_BL
    scaled_BLHK = (scale * q_BLHK.astype(jnp.float32)).astype(q_BLHK.dtype)  # the kernels have no scale

    def on_device(q_BLHK: Array, k_BMJK: Array, v_BMJK: Array, segment_BL: Array) -> Array:
        from jax.experimental.pallas.ops.tpu import splash_attention as splash  # costs every process its import

        kernel = _kernel(q_BLHK.shape[2], L, softcap, window)
        by_head = (x.swapaxes(1, 2) for x in (q_BLHK, k_BMJK, v_BMJK))
        mixed = jax.vmap(lambda q, k, v, segment: kernel(q, k, v, splash.SegmentIds(segment, segment)))
        return mixed(*by_head, segment_BL).swapaxes(1, 2)

    arrays = {"q_BLHK": scaled_BLHK, "k_BMJK": k_BMJK, "v_BMJK": v_BMJK, "segment_BL": segment_BL}
    return shard.local(on_device, "BLHK", opaque=True, **arrays)


def _kernel(heads: int, length: int, softcap: float | None, window: int | None):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (length, length)
    mask = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    size = max(block for block in range(LANES, BLOCK + 1, LANES) if length % block == 0)
    blocks: dict[str, Any] = dict.fromkeys(
        ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), size
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**blocks),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        interpret=device.platform() != "tpu",
    )
