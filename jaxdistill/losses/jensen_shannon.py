"""Jensen-Shannon divergence with a weight: between forward and reverse KL."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.loss import Divergence, check_temperature

LARGEST = 60.0  # exp of it is an fp32 number, beside which 1 is nothing


@dataclasses.dataclass(frozen=True)
class JensenShannon(Divergence):
    """T^2 [beta KL(p || m) + (1 - beta) KL(q || m)] with m = beta p + (1 - beta) q (GKD, arXiv 2306.13649).

    `beta` weighs the teacher p; q is the student. Inside (0, 1) the value is at most the entropy of (beta, 1 - beta),
    so it goes to 0 at both ends, like beta KL(p || q) and (1 - beta) KL(q || p): a sweep over beta also sweeps the size
    of the gradient. At the ends themselves it is defined as ForwardKL (0) and ReverseKL (1), as GKD and TRL have it,
    and jumps there. `normalised` takes the jump away, at one end, by the factor that the limit needs. Its gradient in
    log q_v, before the softmax, is (1 - beta) q_v log(q_v / m_v), up to a term that the softmax removes.

    Attributes:
      beta: from 0 to 1.
      normalised: None; "forward" divides by beta, which is continuous with ForwardKL at 0; "reverse" divides by
        1 - beta, which is continuous with ReverseKL at 1.
      temperature: T.
    """

    beta: float = 0.5
    normalised: Literal["forward", "reverse"] | None = None
    temperature: float = 1.0

    def __post_init__(self):
        check_temperature(self)
        if self.normalised not in (None, "forward", "reverse"):
            raise InputError(f"JensenShannon.normalised is {self.normalised!r}; it is None, 'forward' or 'reverse'")
        if not 0 <= self.beta <= 1 or (self.beta, self.normalised) in ((1, "forward"), (0, "reverse")):
            raise InputError(
                f"JensenShannon.beta is {self.beta} with normalised={self.normalised!r}; it must lie from 0 to 1, and "
                "the end where the divergence vanishes can only be normalised by its own limit"
            )

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        p_BLV, q_BLV, log_ratio_BLV = jnp.exp(log_p_BLV), jnp.exp(log_q_BLV), log_p_BLV - log_q_BLV
        if self.beta == 0:
            return (p_BLV * log_ratio_BLV,)
        if self.beta == 1:
            return (-q_BLV * log_ratio_BLV,)
        log_m_over_q_BLV = log_mixture(log_ratio_BLV, self.beta)
        log_m_over_p_BLV = log_mixture(-log_ratio_BLV, 1 - self.beta)
        divisor = {None: 1.0, "forward": self.beta, "reverse": 1 - self.beta}[self.normalised]
        share_p, share_q = self.beta / divisor, (1 - self.beta) / divisor
        return (-share_p * p_BLV * log_m_over_p_BLV - share_q * q_BLV * log_m_over_q_BLV,)


def log_mixture(log_ratio_BLV: Array, weight: float) -> Array:
    """log((weight p + (1 - weight) q) / q) = log(1 + weight (e^d - 1)), where d = log(p / q).

    Precise relative to itself near d = 0 and for a small weight, which the normalised forms divide by.
    """
    small_BLV = jnp.minimum(log_ratio_BLV, LARGEST)
    return jnp.log1p(weight * jnp.expm1(small_BLV)) + (log_ratio_BLV - small_BLV)
