"""Skewed KL: bounds, limits, closed-form gradients, and the mixture's logarithm."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.skew import DifficultySkew, SkewForwardKL, SkewReverseKL, log_over_mixture

U = 2.0**-24


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.1, 0.5, 0.99])
def test_the_log_over_a_mixture_is_precise_where_it_is_small_and_does_not_overflow(alpha):
    d = np.concatenate([10.0 ** np.arange(-7, 3), -(10.0 ** np.arange(-7, 3)), [0, 59, 60, 61, 1e4, 1e30]])
    d = np.float64(np.float32(d))
    exact = d - np.logaddexp(np.log1p(-alpha), np.log(alpha) + d) if alpha else d
    exact = np.where(d > 60, -np.log(alpha) if alpha else d, exact)
    near = np.abs(d) < 1
    got = np.asarray(log_over_mixture(jnp.asarray(d, jnp.float32), alpha))
    np.testing.assert_allclose(got, exact, rtol=2 * U, atol=4 * U * 30 / (1 - alpha))
    np.testing.assert_allclose(got[near], d[near] - np.log1p(alpha * np.expm1(d[near])), rtol=4 * U / (1 - alpha))
    assert log_over_mixture(jnp.float32(0), alpha) == 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.9])
def test_value_and_gradient_of_skewed_forward_kl_are_the_closed_forms(
    draw, teach, logs, gradient, bound, alpha, temperature
):
    z_BLV, z_teacher_BLV = draw(0, 3.0), draw(1, 3.0)
    log_p, log_q = logs(z_teacher_BLV, z_BLV, T=temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    m = alpha * p + (1 - alpha) * q
    loss, slack = SkewForwardKL(alpha, temperature), bound(log_p, log_q, temperature)
    value_BL = temperature**2 * (p * (log_p - np.log(m))).sum(-1)
    np.testing.assert_allclose(loss(z_BLV, teach(z_teacher_BLV)), value_BL, rtol=0, atol=slack)
    g = -(1 - alpha) * p / m
    expected_BLV = temperature * q * (g - (q * g).sum(-1, keepdims=True))
    np.testing.assert_allclose(gradient(loss, z_BLV, teach(z_teacher_BLV)), expected_BLV, rtol=0, atol=slack / alpha)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.9])
def test_value_and_gradient_of_skewed_reverse_kl_are_the_closed_forms(draw, teach, logs, gradient, bound, alpha):
    z_BLV, z_teacher_BLV = draw(0, 3.0), draw(1, 3.0)
    log_p, log_q = logs(z_teacher_BLV, z_BLV)
    p, q = np.exp(log_p), np.exp(log_q)
    m = alpha * q + (1 - alpha) * p
    slack = bound(log_p, log_q)
    np.testing.assert_allclose(
        SkewReverseKL(alpha)(z_BLV, teach(z_teacher_BLV)), (q * (log_q - np.log(m))).sum(-1), rtol=0, atol=slack
    )
    g = np.log(q / m) + 1 - alpha * q / m  # d/dq of q log(q / m)
    expected_BLV = q * (g - (q * g).sum(-1, keepdims=True))
    got_BLV = gradient(SkewReverseKL(alpha), z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(got_BLV, expected_BLV, rtol=0, atol=slack / alpha)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("loss", [SkewForwardKL, SkewReverseKL])
def test_skewed_kl_is_at_most_minus_log_alpha_and_that_for_disjoint_supports(draw, teach, gradient, loss, alpha):
    assert np.all(loss(alpha)(draw(0, 30.0), teach(draw(1, 30.0))) <= -np.log(alpha) * (1 + 1e-5))
    z_BLV, z_teacher_BLV = (np.full((1, 1, 8), -1e30, np.float32) for _ in range(2))
    z_BLV[..., :4], z_teacher_BLV[..., 4:] = 0, 0
    np.testing.assert_allclose(loss(alpha)(z_BLV, teach(z_teacher_BLV)), -np.log(alpha), rtol=0, atol=4 * 30 * U)
    assert np.all(np.isfinite(gradient(loss(alpha), z_BLV, teach(z_teacher_BLV))))


@pytest.mark.parametrize(("skewed", "plain"), [(SkewForwardKL, ForwardKL), (SkewReverseKL, ReverseKL)])
def test_without_skew_it_is_the_plain_divergence(draw, teach, gradient, skewed, plain):
    z_BLV, target = draw(0, 3.0), teach(draw(1, 3.0))
    np.testing.assert_array_equal(skewed(0.0)(z_BLV, target), plain()(z_BLV, target))
    np.testing.assert_allclose(gradient(skewed(0.0), z_BLV, target), gradient(plain(), z_BLV, target), atol=64 * U)


def test_the_gradient_stays_bounded_where_the_students_probability_vanishes(draw, teach, gradient):
    # p/m <= 1/alpha, so |dz_v| <= q_v (1/alpha + 1): nothing for a token the student never says
    z_BLV, z_teacher_BLV = draw(0), draw(1)
    z_BLV[..., 5], z_teacher_BLV[..., 5] = -200, 20
    assert np.all(np.abs(gradient(SkewForwardKL(0.1), z_BLV, teach(z_teacher_BLV))[..., 5]) == 0)
    assert np.all(np.abs(gradient(ForwardKL(), z_BLV, teach(z_teacher_BLV))[..., 5]) > 0.9)


def test_only_difficult_tokens_are_skewed(draw, teach):
    z_BLV, target = draw(0, 2.0), teach(draw(1, 2.0))
    kl_BL, skewed_BL = ForwardKL()(z_BLV, target), SkewForwardKL(0.5)(z_BLV, target)
    threshold = float(np.median(kl_BL))
    got_BL = DifficultySkew(0.5, threshold=threshold)(z_BLV, target)
    np.testing.assert_array_equal(got_BL, np.where(kl_BL > threshold, skewed_BL, kl_BL))
    assert 0 < np.sum(kl_BL > threshold) < kl_BL.size
    np.testing.assert_array_equal(DifficultySkew(0.0, threshold=threshold)(z_BLV, target), kl_BL)


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_a_share_that_leaves_nothing_to_the_other_side_is_refused(alpha):
    with pytest.raises(InputError, match=r"SkewReverseKL.alpha is .* it must be at least 0 and below 1"):
        SkewReverseKL(alpha)
