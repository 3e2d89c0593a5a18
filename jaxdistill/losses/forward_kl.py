"""Forward KL from a teacher's whole distribution: the distillation loss of Hinton et al. 2015."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.targets import Dense, Target


def match_width(z_BLV: Array, width: int) -> Array:
    """Teacher logits on the student's padded vocabulary: two models of one tokenizer may pad differently."""
    extra = width - z_BLV.shape[-1]
    if extra <= 0:
        return z_BLV[..., :width]
    return jnp.pad(z_BLV, ((0, 0), (0, 0), (0, extra)), constant_values=-1e30)


@dataclasses.dataclass(frozen=True)
class ForwardKL:
    """T^2 KL(teacher || student) = T^2 sum_v p_v (log p_v - log q_v), p = softmax(z_teacher / T), q = softmax(z / T).

    In nats; the sum runs in fp32 over the difference of logs, never as a difference of two sums. Its gradient in the
    student's logits is T (q - p), so T^2 keeps gradients of one size when T changes (Hinton et al. 2015, section 2.1).

    Attributes:
      temperature: T, for teacher and student alike; the factor T^2 applies to value and gradient.

    Raises InputError where the target is not a whole distribution, or the temperature not above 0.
    """

    temperature: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise InputError(f"forward_kl.temperature is {self.temperature}; it must be above 0")

    def __call__(self, z_BLV: Array, target: Target) -> Array:
        if not isinstance(target, Dense):
            raise InputError(
                f"forward_kl needs a teacher's whole distribution, not {type(target).__name__}: set experiment.teacher"
            )
        T = self.temperature
        z_teacher_BLV = match_width(target.head.logits(), z_BLV.shape[-1])
        log_p_BLV = jax.nn.log_softmax(z_teacher_BLV / T, axis=-1)
        log_q_BLV = jax.nn.log_softmax(z_BLV / T, axis=-1)
        return T**2 * jnp.sum(jnp.exp(log_p_BLV) * (log_p_BLV - log_q_BLV), axis=-1)
