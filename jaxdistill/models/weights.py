"""Weights of a layer: how they are drawn, and how they meet activations of another dtype."""

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


def bias(*shape: int) -> Any:
    """A bias, which starts at zero."""
    return nnx.Param(jnp.zeros(shape))


def add_bias(x: Array, module: nnx.Module, name: str) -> Array:
    """x plus the module's bias of this name, in the dtype of x; x where the module has none."""
    return x + getattr(module, name)[...].astype(x.dtype) if hasattr(module, name) else x
