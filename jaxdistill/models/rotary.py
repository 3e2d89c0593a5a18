"""Rotary positions (Su et al. 2021, arXiv 2104.09864), in the half-split convention of Llama checkpoints."""

import math

import jax.numpy as jnp
from jax import Array

from jaxdistill.models.design import LinearScaling, Llama3Scaling

Angles = tuple[Array, Array]
"""Cosine and sine, fp32 [B, L, R/2] where R dimensions of a head turn."""


def angles(position_BL: Array, size: int, base: float, scaling: LinearScaling | Llama3Scaling | None = None) -> Angles:
    """The angles position * base^(-2i/size) of pair i, with the frequencies scaled where `scaling` is given."""
    frequency_K = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    if scaling is not None:
        frequency_K = _scaled(frequency_K, scaling)
    angle_BLK = position_BL[..., None].astype(jnp.float32) * frequency_K
    return jnp.cos(angle_BLK), jnp.sin(angle_BLK)


def _scaled(frequency_K: Array, scaling: LinearScaling | Llama3Scaling) -> Array:
    if isinstance(scaling, LinearScaling):
        return frequency_K / scaling.factor
    turns_K = scaling.context * frequency_K / (2 * math.pi)
    kept_K = jnp.clip((turns_K - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (1 - kept_K) * frequency_K / scaling.factor + kept_K * frequency_K


def rotate(x_BLHK: Array, angles: Angles) -> Array:
    """Turn dimension i with i + R/2 by the angles; dimensions from R on pass as they are."""
    size = 2 * angles[0].shape[-1]
    cos_BLHK, sin_BLHK = (a[:, :, None, :] for a in angles)
    first, second = jnp.split(x_BLHK[..., :size].astype(jnp.float32), 2, axis=-1)
    turned = (first * cos_BLHK - second * sin_BLHK, second * cos_BLHK + first * sin_BLHK)
    turned_BLHK = jnp.concatenate(turned, axis=-1).astype(x_BLHK.dtype)
    if size == x_BLHK.shape[-1]:
        return turned_BLHK
    return jnp.concatenate([turned_BLHK, x_BLHK[..., size:]], axis=-1)
