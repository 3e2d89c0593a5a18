"""Decoupled KD: forward KL split into the label against the rest and the rest among itself, weighted apart."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill.head import MASKED
from jaxdistill.losses.loss import Divergence, check_temperature
from jaxdistill.losses.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class DecoupledKD(Divergence):
    """T^2 [alpha TCKD + beta NCKD] (Zhao et al. 2022, arXiv 2203.08679), with y the token of the data:

    TCKD = KL of (p_y, 1 - p_y) from (q_y, 1 - q_y), NCKD = KL of p from q, both renormalised without y.
    KL(p || q) = TCKD + (1 - p_y) NCKD, so what plain KL multiplies by 1 - p_y gets the constant weight beta here. All
    is computed in logs, and holds where p_y or q_y rounds to 1.

    Attributes:
      alpha, beta: weights of the two parts; TAID compares with 1 and 0.5.
      temperature: T.
    """

    alpha: float = 1.0
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        check_temperature(self)

    def per_token(self, log_p_BLV: Array, log_q_BLV: Array, target: Any, vocabulary: Vocabulary) -> tuple[Array, ...]:
        at_label_BLV = vocabulary.at(target.label_BL, log_p_BLV.shape[-1])
        rest = [jnp.where(at_label_BLV, MASKED, log_BLV) for log_BLV in (log_p_BLV, log_q_BLV)]
        return tuple(vocabulary.lse(log_BLV) for log_BLV in rest)  # log(1 - p_y), log(1 - q_y)

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        log_rest_p, log_rest_q = of_token
        p_given_rest_BLV = jnp.exp(jnp.where(at_label_BLV, MASKED, log_p_BLV - log_rest_p))
        q_given_rest_BLV = jnp.exp(jnp.where(at_label_BLV, MASKED, log_q_BLV - log_rest_q))
        among_rest_BLV = p_given_rest_BLV * ((log_p_BLV - log_rest_p) - (log_q_BLV - log_rest_q))
        rest_p = jnp.exp(log_rest_p)
        label_BLV = jnp.exp(log_p_BLV) * (log_p_BLV - log_q_BLV) + rest_p * (log_rest_p - log_rest_q)
        at_label = [jnp.where(at_label_BLV, x, 0.0) for x in (label_BLV, jnp.broadcast_to(rest_p, log_p_BLV.shape))]
        return *at_label, q_given_rest_BLV, among_rest_BLV

    def value(self, *sum_BL: Array) -> Array:
        label_BL, rest_p_BL, one_BL, among_rest_BL = sum_BL
        log_one_BL = jnp.log(one_BL)  # 0, but log(1 - q_y) has its gradient here: `per_token` passes none
        target_BL, rest_BL = label_BL - rest_p_BL * log_one_BL, among_rest_BL + log_one_BL
        return self.temperature**2 * (self.alpha * target_BL + self.beta * rest_BL)
