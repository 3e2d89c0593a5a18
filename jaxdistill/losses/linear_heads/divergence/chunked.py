"""Divergences on a chunk of logits: what they cost, and their gradient in the student's logits.

With g_v = d loss / d log q_v, and log q = log softmax(z / T): dz = (g - q sum_u g_u) / T.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.loss import Divergence
from jaxdistill.losses.vocabulary import Vocabulary


def on_logits(
    divergence: Divergence, z_BLV: Array, target, weight_BL: Array, vocabulary: Vocabulary, with_gradient: bool
) -> tuple[Array, Array | None]:
    """(value_BL, dz_BLV): the divergence of each token, and weight_BL times its gradient."""
    T = divergence.temperature
    log_p_BLV = divergence.log_p(z_BLV, target, vocabulary)
    log_q_BLV = vocabulary.log_softmax(z_BLV / T)
    fixed = divergence.fixed(log_p_BLV, log_q_BLV, target, vocabulary)

    def points(log_q_BLV):
        return divergence.points(log_p_BLV, log_q_BLV, *fixed)

    if not with_gradient:
        return divergence.value(*map(vocabulary.sum, points(log_q_BLV))), None
    points_BLV, through_points = jax.vjp(points, log_q_BLV)
    value_BL, through_value = jax.vjp(divergence.value, *map(vocabulary.sum, points_BLV))
    dsums_BL = through_value(weight_BL)
    (g_BLV,) = through_points(tuple(jnp.broadcast_to(d_BL[..., None], z_BLV.shape) for d_BL in dsums_BL))
    return value_BL, (g_BLV - jnp.exp(log_q_BLV) * vocabulary.sum(g_BLV)[..., None]) / T
