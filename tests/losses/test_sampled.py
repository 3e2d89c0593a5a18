"""Sampled targets: unbiased over all samples there are, enumerated, and the form in which the value is reported."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.sampled import SampledCrossEntropy
from jaxdistill.losses.targets import NO_ID, Labels, Sampled

U = 2.0**-24


def sample_of(draws, vocab_size):
    """One token's target from its draws, with counts over the number of draws as weights."""
    ids, counts = np.unique(draws, return_counts=True)
    extra = len(draws) - len(ids)
    id_S = np.pad(ids, (0, extra), constant_values=NO_ID)
    weight_S = np.pad(counts / len(draws), (0, extra))
    return Sampled(
        jnp.zeros((1, 1), jnp.int32), jnp.asarray(id_S[None, None]), jnp.asarray(weight_S[None, None], jnp.float32)
    )


def test_over_all_possible_samples_value_and_gradient_are_those_of_full_distillation(draw, teach, logs, gradient):
    V, rounds = 4, 3
    z_BLV, z_teacher_BLV = draw(0, 1.0, V, (1, 1)), draw(1, 1.0, V, (1, 1))
    (log_p, log_q), p = logs(z_teacher_BLV, z_BLV), special.softmax(np.float64(z_teacher_BLV))[0, 0]
    value, slope_BLV = 0.0, np.zeros_like(log_q)
    for draws in itertools.product(range(V), repeat=rounds):
        probability, target = np.prod(p[list(draws)]), sample_of(draws, V)
        value += probability * float(SampledCrossEntropy()(z_BLV, target)[0, 0])
        slope_BLV += probability * gradient(SampledCrossEntropy(), z_BLV, target)
    np.testing.assert_allclose(value, -(np.exp(log_p) * log_q).sum(), rtol=32 * U)
    np.testing.assert_allclose(slope_BLV, np.exp(log_q) - np.exp(log_p), atol=32 * U)
    np.testing.assert_allclose(slope_BLV, gradient(ForwardKL(), z_BLV, teach(z_teacher_BLV)), atol=32 * U)


def test_one_draw_is_cross_entropy_on_the_drawn_token(draw, gradient):
    z_BLV = draw(0, shape=(1, 1))
    sampled, label = sample_of([7], 33), Labels(jnp.full((1, 1), 7))
    np.testing.assert_allclose(SampledCrossEntropy()(z_BLV, sampled), CrossEntropy()(z_BLV, label), rtol=8 * U)
    np.testing.assert_allclose(
        gradient(SampledCrossEntropy(), z_BLV, sampled), gradient(CrossEntropy(), z_BLV, label), atol=8 * U
    )


def test_weights_need_not_sum_to_one(draw, gradient):
    # (sum w) q - w: what unnormalised importance weights give
    z_BLV, weights = draw(0, shape=(1, 1)), np.float32([[[0.9, 0.4, 0.0]]])
    target = Sampled(jnp.zeros((1, 1), jnp.int32), jnp.asarray([[[3, 5, NO_ID]]]), jnp.asarray(weights))
    q = special.softmax(np.float64(z_BLV), axis=-1)
    w = np.zeros(33)
    w[[3, 5]] = 0.9, 0.4
    np.testing.assert_allclose(gradient(SampledCrossEntropy(), z_BLV, target), 1.3 * q - w, atol=8 * U)
    np.testing.assert_allclose(SampledCrossEntropy()(z_BLV, target), -(w * np.log(q)).sum(-1), rtol=8 * U)


def test_a_temperature_cannot_be_given_and_another_target_is_refused():
    with pytest.raises(TypeError, match="temperature"):
        SampledCrossEntropy(temperature=2.0)
    with pytest.raises(InputError, match=r"needs tokens sampled from a teacher, not Labels"):
        SampledCrossEntropy().ids(Labels(jnp.zeros((1, 1), jnp.int32)))
