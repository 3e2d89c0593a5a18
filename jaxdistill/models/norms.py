"""Norms over the last dimension, computed in fp32 and returned in the dtype of their input."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdistill.models.design import LayerNorm, RMSNorm


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    """x / rms(x) * gain (Zhang & Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * inverse * gain.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: Array, gain: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * gain + bias (Ba et al. 2016)."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return (centred * inverse * gain.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def fresh(name: str, letter: str, size: int, design: RMSNorm | LayerNorm) -> dict[str, Array]:
    """The parameters of a norm that changes nothing but the scale: `name_D`, and `name_bias_D` where it has a bias."""
    if isinstance(design, LayerNorm):
        return {f"{name}_{letter}": jnp.ones(size), f"{name}_bias_{letter}": jnp.zeros(size)}
    return {f"{name}_{letter}": jnp.zeros(size) if design.unit_offset else jnp.ones(size)}


def declare(module: nnx.Module, name: str, letter: str, size: int, design: RMSNorm | LayerNorm) -> None:
    """Give a module the parameters of the norm `name`."""
    for key, value in fresh(name, letter, size, design).items():
        setattr(module, key, nnx.Param(value))


def apply(x: Array, gain: Array, bias: Array | None, design: RMSNorm | LayerNorm, eps: float) -> Array:
    """The norm of a design on x [..., D] with its parameters [D]; `bias` is None for a norm that has none."""
    if isinstance(design, LayerNorm):
        assert bias is not None
        return layer_norm(x, gain, bias, eps)
    return rms_norm(x, gain.astype(jnp.float32) + 1 if design.unit_offset else gain, eps)


def call(module: nnx.Module, name: str, letter: str, x: Array, config) -> Array:
    """The norm that `declare` gave to a module, on x."""
    bias = getattr(module, f"{name}_bias_{letter}", None)
    gain = getattr(module, f"{name}_{letter}")[...]
    return apply(x, gain, None if bias is None else bias[...], config.design.norm, config.norm_eps)
