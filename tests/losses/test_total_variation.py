"""Total variation, the acceptance rate, and the logarithm of it."""

import numpy as np
import pytest
from scipy import special

from jaxdistill.losses.total_variation import NegativeLogAcceptance, TotalVariation

U = 2.0**-24


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 30.0])
def test_one_minus_total_variation_is_the_acceptance_rate(draw, teach, logs, bound, spread):
    z_BLV, z_teacher_BLV = draw(0, spread), draw(1, spread)
    log_p, log_q = logs(z_teacher_BLV, z_BLV)
    accepted_BL = np.minimum(np.exp(log_p), np.exp(log_q)).sum(-1)
    slack = bound(log_p, log_q)
    tv_BL = TotalVariation()(z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(tv_BL, 1 - accepted_BL, rtol=0, atol=slack)
    np.testing.assert_allclose(tv_BL, np.abs(np.exp(log_p) - np.exp(log_q)).sum(-1) / 2, rtol=0, atol=slack)
    got_BL = NegativeLogAcceptance()(z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(got_BL, -np.log(accepted_BL), rtol=0, atol=slack)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_its_gradient_is_a_policy_gradient_with_reward_one_where_the_teacher_is_above(
    draw, teach, logs, gradient, bound, temperature
):
    z_BLV, z_teacher_BLV = draw(0, 3.0), draw(1, 3.0)
    log_p, log_q = logs(z_teacher_BLV, z_BLV, T=temperature)
    q, reward = np.exp(log_q), log_p > log_q
    expected_BLV = -temperature * q * (reward - (q * reward).sum(-1, keepdims=True))
    slack = bound(log_p, log_q, temperature)
    got_BLV = gradient(TotalVariation(temperature), z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(got_BLV, expected_BLV, rtol=0, atol=slack)
    accepted_BL = np.minimum(np.exp(log_p), q).sum(-1, keepdims=True)
    got_BLV = gradient(NegativeLogAcceptance(temperature), z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(got_BLV, expected_BLV / accepted_BL, rtol=0, atol=slack / accepted_BL.min())


def test_a_small_total_variation_keeps_its_digits(draw, teach):
    z_BLV = draw(0)
    near_BLV = (z_BLV + 1e-3 * draw(1)).astype(np.float32)
    p, q = (special.softmax(np.float64(z), axis=-1) for z in (near_BLV, z_BLV))
    expected_BL = np.abs(p - q).sum(-1) / 2
    assert expected_BL.max() < 1e-3
    # each log-probability is off by its own size times u, and the sum weighs that with p
    np.testing.assert_allclose(TotalVariation()(z_BLV, teach(near_BLV)), expected_BL, rtol=0, atol=16 * U)


def test_where_nothing_would_be_accepted_the_logarithm_still_says_how_far_off_and_where_to_go(
    draw, teach, logs, gradient
):
    z_BLV, z_teacher_BLV = draw(0), draw(1)
    z_BLV[..., 0] += 300
    z_teacher_BLV[..., 1] += 300
    got_BL = NegativeLogAcceptance()(z_BLV, teach(z_teacher_BLV))
    assert np.all((got_BL > 290) & (got_BL < 310))
    assert not np.any(gradient(TotalVariation(), z_BLV, teach(z_teacher_BLV)))  # flat: every min(p, q) underflows
    log_p, log_q = logs(z_teacher_BLV, z_BLV)
    share = special.softmax(np.minimum(log_p, log_q), axis=-1) * (log_q < log_p)  # of each token in the overlap
    expected_BLV = np.exp(log_q) * share.sum(-1, keepdims=True) - share
    got_BLV = gradient(NegativeLogAcceptance(), z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(got_BLV, expected_BLV, rtol=0, atol=8 * 300 * U)
