"""The layers of a decoder, written in Flax NNX.

A module here describes one layer: the names of its parameters carry their letters, and `transformer` stacks N of them.
Matmuls run in the dtype of their input; norms, rotations and the softmax of attention are computed in fp32.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Any:
    """A weight drawn from a normal truncated at two standard deviations, with variance 1 / fan_in."""
    spread = 1 / math.sqrt(fan_in) / 0.87962566103423978  # the truncation takes away that much of the spread
    return nnx.Param(spread * jax.random.truncated_normal(rngs.params(), -2, 2, shape))


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """x / rms(x) * scale over the last dimension (Zhang & Sennrich 2019), computed in fp32, returned in x's dtype."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * inverse * scale.astype(jnp.float32)).astype(x.dtype)


def rotary_angles(position_BL: Array, head_size: int, base: float) -> tuple[Array, Array]:
    """Cosine and sine of the rotary angles (Su et al. 2021), fp32 [B, L, K/2]: position * base^(-2i/K) for pair i."""
    frequency_K = base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angle_BLK = position_BL[..., None].astype(jnp.float32) * frequency_K
    return jnp.cos(angle_BLK), jnp.sin(angle_BLK)


def rotate(x_BLHK: Array, angles: tuple[Array, Array]) -> Array:
    """Rotary embedding in the half-split convention: dimension i is paired with i + K/2 (as in Llama checkpoints)."""
    cos_BLHK, sin_BLHK = (a[:, :, None, :] for a in angles)
    first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos_BLHK - second * sin_BLHK, second * cos_BLHK + first * sin_BLHK)
    return jnp.concatenate(turned, axis=-1).astype(x_BLHK.dtype)


def causal_mask(segment_BL: Array | None, length: int) -> Array:
    """True where a query may look: at itself and before, within its own segment; bool [B or 1, 1, L, M]."""
    mask_LM = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if segment_BL is None:
        return mask_LM
    return mask_LM & (segment_BL[:, None, :, None] == segment_BL[:, None, None, :])


class Attention(nnx.Module):
    """Causal self-attention with rotary positions, grouped key/value heads and, where asked, normalised q and k."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, H, J, K = config.width, config.num_heads, config.num_kv_heads, config.head_size
        self.q_DHK = matrix(rngs, (D, H, K), fan_in=D)
        self.k_DJK = matrix(rngs, (D, J, K), fan_in=D)
        self.v_DJK = matrix(rngs, (D, J, K), fan_in=D)
        self.o_HKD = matrix(rngs, (H, K, D), fan_in=H * K)
        if config.qk_norm:
            self.q_norm_K = nnx.Param(jnp.ones(K))
            self.k_norm_K = nnx.Param(jnp.ones(K))
        self.config = config

    def __call__(self, x_BLD: Array, angles: tuple[Array, Array], mask: Array, shard) -> Array:
        dtype = x_BLD.dtype
        q_BLHK = shard(jnp.einsum("bld,dhk->blhk", x_BLD, self.q_DHK[...].astype(dtype)), "BLHK")
        k_BMJK = shard(jnp.einsum("bld,djk->bljk", x_BLD, self.k_DJK[...].astype(dtype)), "BMJK")
        v_BMJK = shard(jnp.einsum("bld,djk->bljk", x_BLD, self.v_DJK[...].astype(dtype)), "BMJK")
        if self.config.qk_norm:
            q_BLHK = rms_norm(q_BLHK, self.q_norm_K[...], self.config.norm_eps)
            k_BMJK = rms_norm(k_BMJK, self.k_norm_K[...], self.config.norm_eps)
        q_BLHK, k_BMJK = rotate(q_BLHK, angles), rotate(k_BMJK, angles)
        mixed_BLHK = jax.nn.dot_product_attention(q_BLHK, k_BMJK, v_BMJK, mask=mask, implementation="xla")
        return jnp.einsum("blhk,hkd->bld", mixed_BLHK, self.o_HKD[...].astype(dtype))


class GatedMLP(nnx.Module):
    """down(silu(gate x) * up x): the SwiGLU feed-forward layer (Shazeer 2020)."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, F = config.width, config.mlp_width
        self.gate_DF = matrix(rngs, (D, F), fan_in=D)
        self.up_DF = matrix(rngs, (D, F), fan_in=D)
        self.down_FD = matrix(rngs, (F, D), fan_in=F)

    def __call__(self, x_BLD: Array, shard) -> Array:
        dtype = x_BLD.dtype
        gate_BLF = shard(x_BLD @ self.gate_DF[...].astype(dtype), "BLF")
        up_BLF = shard(x_BLD @ self.up_DF[...].astype(dtype), "BLF")
        return (jax.nn.silu(gate_BLF) * up_BLF) @ self.down_FD[...].astype(dtype)


class Block(nnx.Module):
    """One pre-norm decoder layer: attention and a gated MLP, each added to the stream it reads."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        self.attention_norm_D = nnx.Param(jnp.ones(config.width))
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm_D = nnx.Param(jnp.ones(config.width))
        self.mlp = GatedMLP(config, rngs=rngs)
        self.eps = config.norm_eps

    def __call__(self, x_BLD: Array, angles: tuple[Array, Array], mask: Array, shard) -> Array:
        attended = self.attention(rms_norm(x_BLD, self.attention_norm_D[...], self.eps), angles, mask, shard)
        x_BLD = shard(x_BLD + attended, "BLD")
        return shard(x_BLD + self.mlp(rms_norm(x_BLD, self.mlp_norm_D[...], self.eps), shard), "BLD")
