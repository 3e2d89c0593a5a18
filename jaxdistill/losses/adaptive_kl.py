"""Adaptive KL: forward and reverse KL, each weighted by how far the student is off where that one looks."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.loss import Divergence, check_temperature
from jaxdistill.losses.ranks import mass_before
from jaxdistill.losses.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class AdaptiveKL(Divergence):
    """T^2 [w KL(p || q) + (1 - w) KL(q || p)], w = g_head / (g_head + g_tail) (Wu et al. 2024, arXiv 2404.02657).

    g is sum |p - q| over a part of the vocabulary. The head is the teacher's most probable token and those after it as
    long as their joint mass stays within `mu`; the tail is the rest. w takes no gradient, and is 1/2 where student and
    teacher agree. Tokens are sorted, so the vocabulary must not be sharded.

    Attributes:
      mu: mass of the head, above 0 and below 1.
      temperature: T.
    """

    mu: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        check_temperature(self)
        if not 0 < self.mu < 1:
            raise InputError(f"AdaptiveKL.mu is {self.mu}; the head's mass must be above 0 and below 1")

    def per_token(
        self, log_p_BLV: Array, log_q_BLV: Array, target: object, vocabulary: Vocabulary
    ) -> tuple[Array, ...]:
        p_BLV = jnp.exp(log_p_BLV)
        before_BLV = mass_before(log_p_BLV, vocabulary, "AdaptiveKL")
        head_BLV = (before_BLV + p_BLV <= self.mu) | (before_BLV == 0)
        gap_BLV = jnp.abs(p_BLV - jnp.exp(log_q_BLV))
        head_BL, whole_BL = jnp.sum(jnp.where(head_BLV, gap_BLV, 0), axis=-1), jnp.sum(gap_BLV, axis=-1)
        return (jnp.where(whole_BL > 0, head_BL / jnp.where(whole_BL > 0, whole_BL, 1), 0.5),)

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        (w,) = of_token
        mix_BLV = w * jnp.exp(log_p_BLV) - (1 - w) * jnp.exp(log_q_BLV)
        return (mix_BLV * (log_p_BLV - log_q_BLV),)
