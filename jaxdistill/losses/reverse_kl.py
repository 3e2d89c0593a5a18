"""Reverse KL: the student is asked to stay where the teacher puts mass."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.loss import Divergence, check_temperature


@dataclasses.dataclass(frozen=True)
class ReverseKL(Divergence):
    """T^2 KL(student || teacher) = T^2 sum_v q_v (log q_v - log p_v), in nats (MiniLLM, arXiv 2306.08543).

    Its gradient in the student's logits is T q (log(q / p) - KL(q || p)), zero where the student has no mass. Against a
    teacher that gives no mass to a token the student likes, a truncated one above all, its true value is infinite; here
    such a token costs 1e30 times its probability.

    Attributes:
      temperature: T, for teacher and student alike; the factor T^2 applies to value and gradient.
    """

    temperature: float = 1.0

    def __post_init__(self):
        check_temperature(self)

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        return (jnp.exp(log_q_BLV) * (log_q_BLV - log_p_BLV),)
