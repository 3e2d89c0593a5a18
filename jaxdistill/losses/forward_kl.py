"""Forward KL from a teacher's whole distribution: the distillation loss of Hinton et al. 2015."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.loss import Divergence, check_temperature


@dataclasses.dataclass(frozen=True)
class ForwardKL(Divergence):
    """T^2 KL(teacher || student) = T^2 sum_v p_v (log p_v - log q_v), p = softmax(z_teacher / T), q = softmax(z / T).

    In nats; the sum runs in fp32 over the difference of logs, never as a difference of two sums. Its gradient in the
    student's logits is T (q - p), so T^2 keeps gradients of one size when T changes (Hinton et al. 2015, section 2.1).

    Attributes:
      temperature: T, for teacher and student alike; the factor T^2 applies to value and gradient.

    Raises InputError where the target is not a whole distribution, or the temperature not above 0.
    """

    temperature: float = 1.0

    def __post_init__(self):
        check_temperature(self)

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        return (jnp.exp(log_p_BLV) * (log_p_BLV - log_q_BLV),)
