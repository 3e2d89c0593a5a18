"""Total variation, and the acceptance rate of speculative decoding, which is one minus it."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.loss import Divergence, check_temperature
from jaxdistill.losses.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class TotalVariation(Divergence):
    """T^2 TV(p, q) = T^2 sum_v max(p_v - q_v, 0): half the L1 distance of teacher p and student q, from 0 to T^2.

    At T = 1, 1 - TV = sum_v min(p_v, q_v) is the probability that speculative decoding accepts a token drawn from the
    student (arXiv 2211.17192, theorem 3.5). The gradient is -T E_{v ~ q}[1{p_v > q_v} d log q_v / d(z / T)], with 0
    where both agree. It falls off as 1 / T, and not as the 1 / T^2 that the common factor T^2 makes up for.

    Attributes:
      temperature: T.
    """

    temperature: float = 1.0

    def __post_init__(self):
        check_temperature(self)

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        below_BLV = jnp.minimum(log_q_BLV - log_p_BLV, 0.0)  # p - q = -p expm1(log q/p): precise where p is close to q
        return (jnp.where(log_q_BLV < log_p_BLV, -jnp.exp(log_p_BLV) * jnp.expm1(below_BLV), 0.0),)


@dataclasses.dataclass(frozen=True)
class NegativeLogAcceptance(Divergence):
    """-T^2 log sum_v min(p_v, q_v) = -T^2 log(1 - TV(p, q)), the cross-entropy of "accepted".

    Its gradient is that of TV over 1 - TV: tokens that the student gets entirely wrong, where TV is flat, count most.
    The sum is taken relative to its largest term, so that value and gradient hold where every min(p, q) underflows.

    Attributes:
      temperature: T; the acceptance rate is that of T = 1.
    """

    temperature: float = 1.0

    def __post_init__(self):
        check_temperature(self)

    def per_token(
        self, log_p_BLV: Array, log_q_BLV: Array, target: object, vocabulary: Vocabulary
    ) -> tuple[Array, ...]:
        return (vocabulary.max(jnp.minimum(log_p_BLV, log_q_BLV)),)

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        (top,) = of_token
        less_BLV = jnp.where(log_q_BLV < log_p_BLV, log_q_BLV, log_p_BLV)
        return jnp.exp(less_BLV - top), jnp.where(at_label_BLV, top, 0.0)

    def value(self, *sum_BL: Array) -> Array:
        overlap_BL, top_BL = sum_BL
        return -(self.temperature**2) * (jnp.log(overlap_BL) + top_BL)
