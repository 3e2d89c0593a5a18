"""Losses on hidden states. Student and teacher of one width; layers, where there are several, in front."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError


@dataclasses.dataclass(frozen=True)
class MeanSquare:
    """mean_D (h - h_teacher)^2, per token."""

    def __call__(self, h_BLD: Array, target_BLD: Array, weight_BL: Array) -> Array:
        """[..., B, L, D] twice and fp32 [B, L] to fp32 [..., B, L]; 0 where the weight is.

        Raises InputError where the shapes differ.
        """
        h_BLD, target_BLD = _comparable(h_BLD, target_BLD, weight_BL)
        return jnp.mean((h_BLD - target_BLD) ** 2, axis=-1)


@dataclasses.dataclass(frozen=True)
class CosineDistance:
    """1 - cos(h, h_teacher), per token (DistilBERT, arXiv 1910.01108); a state of norm 0 has the cosine 0 to any."""

    def __call__(self, h_BLD: Array, target_BLD: Array, weight_BL: Array) -> Array:
        """[..., B, L, D] twice and fp32 [B, L] to fp32 [..., B, L]; 0 where the weight is.

        Raises InputError where the shapes differ.
        """
        h_BLD, target_BLD = _comparable(h_BLD, target_BLD, weight_BL)
        distance_BL = 1 - jnp.sum(_unit(h_BLD) * _unit(target_BLD), axis=-1)
        return jnp.where(weight_BL != 0, distance_BL, 0)


@dataclasses.dataclass(frozen=True)
class SquareHead:
    """mean_D (h - h_teacher)^2 over the mean of h_teacher^2 of all tokens that count (arXiv 2310.06927).

    A common factor on both models changes nothing, so layers of different scale count alike.
    """

    def __call__(self, h_BLD: Array, target_BLD: Array, weight_BL: Array) -> Array:
        """[..., B, L, D] twice and fp32 [B, L] to fp32 [..., B, L]; 0 where the weight is.

        Raises InputError where the shapes differ.
        """
        h_BLD, target_BLD = _comparable(h_BLD, target_BLD, weight_BL)
        counts_BL = weight_BL != 0
        size = jnp.sum(jnp.mean(target_BLD**2, axis=-1), axis=(-2, -1), keepdims=True) / jnp.maximum(
            jnp.sum(counts_BL), 1
        )
        return jnp.mean((h_BLD - target_BLD) ** 2, axis=-1) / jnp.maximum(size, jnp.finfo(jnp.float32).tiny)


@dataclasses.dataclass(frozen=True)
class ChannelSquare:
    """mean_D (h - h_teacher)^2 / m_D, with m_D the mean of h_teacher^2 of all tokens that count in the row.

    ALM adds it at the ends of chunks (arXiv 2503.20083, appendix C); its released code takes m over the batch. That
    of a row does not depend on how rows are divided into micro-batches and over devices. A common factor on a channel
    of both models changes nothing; a channel in which the teacher is 0 throughout does not count.
    """

    def __call__(self, h_BLD: Array, target_BLD: Array, weight_BL: Array) -> Array:
        """[..., B, L, D] twice and fp32 [B, L] to fp32 [..., B, L]; 0 where the weight is.

        Raises InputError where the shapes differ.
        """
        h_BLD, target_BLD = _comparable(h_BLD, target_BLD, weight_BL)
        number_BL = jnp.sum(weight_BL != 0, axis=-1, keepdims=True)[..., None]
        size_BLD = jnp.sum(target_BLD**2, axis=-2, keepdims=True) / jnp.maximum(number_BL, 1)
        is_silent_BLD = size_BLD == 0
        share_BLD = jnp.where(is_silent_BLD, 0, 1 / jnp.where(is_silent_BLD, 1, size_BLD))
        return jnp.mean((h_BLD - target_BLD) ** 2 * share_BLD, axis=-1)


def _comparable(h_BLD: Array, target_BLD: Array, weight_BL: Array) -> tuple[Array, Array]:
    """Both in fp32, the teacher's without gradient, and zeros for tokens that do not count, whatever they hold."""
    if h_BLD.shape != target_BLD.shape:
        raise InputError(
            f"hidden states {list(h_BLD.shape)} of the student and {list(target_BLD.shape)} of the teacher cannot be "
            "compared: project one of them, or take models of one width"
        )
    counts_BL = (weight_BL != 0)[..., None]
    h_BLD, target_BLD = (jnp.where(counts_BL, x, 0).astype(jnp.float32) for x in (h_BLD, target_BLD))
    return h_BLD, jax.lax.stop_gradient(target_BLD)


def _unit(h_BLD: Array) -> Array:
    """h / |h|, and 0 with gradient 0 for h = 0, where sqrt alone would give NaN."""
    square_BL = jnp.sum(h_BLD**2, axis=-1, keepdims=True)
    is_zero_BL = square_BL == 0
    return jnp.where(is_zero_BL, 0, h_BLD * jax.lax.rsqrt(jnp.where(is_zero_BL, 1, square_BL)))
