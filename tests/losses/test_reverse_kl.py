"""Reverse KL against float64 and its closed-form gradient."""

import numpy as np
import pytest

from jaxdistill.losses.reverse_kl import ReverseKL


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_reverse_kl_and_its_gradient_are_the_closed_forms(draw, teach, logs, gradient, bound, spread, temperature):
    z_BLV, z_teacher_BLV = draw(0, spread), draw(1, spread)
    log_p, log_q = logs(z_teacher_BLV, z_BLV, T=temperature)
    q, ratio = np.exp(log_q), log_q - log_p
    kl_BL = (q * ratio).sum(-1)
    loss, slack = ReverseKL(temperature), bound(log_p, log_q, temperature)
    np.testing.assert_allclose(loss(z_BLV, teach(z_teacher_BLV)), temperature**2 * kl_BL, rtol=0, atol=slack)
    expected_BLV = temperature * q * (ratio - kl_BL[..., None])
    np.testing.assert_allclose(
        gradient(loss, z_BLV, teach(z_teacher_BLV)), expected_BLV, rtol=0, atol=slack / temperature
    )


def test_it_ignores_what_the_student_never_says_where_forward_kl_does_not(draw, teach, gradient):
    z_BLV, z_teacher_BLV = draw(0), draw(1)
    z_BLV[..., 5] = -200  # below any fp32 probability
    loud_BLV = z_teacher_BLV.copy()
    loud_BLV[..., 5] -= 3
    quiet, loud = (gradient(ReverseKL(), z_BLV, teach(z)) for z in (z_teacher_BLV, loud_BLV))
    assert not quiet[..., 5].any()
    np.testing.assert_allclose(quiet, loud, atol=1e-6)  # the renormalisation is a shift, which the mean removes


def test_the_sampled_log_ratio_times_the_score_has_its_gradient_in_expectation(draw, teach, logs, gradient, bound):
    # E_{y ~ q}[log q(y)/p(y) d log q(y)], summed over all y: what a policy gradient estimates
    z_BLV, z_teacher_BLV = draw(0, 2.0), draw(1, 2.0)
    log_p, log_q = logs(z_teacher_BLV, z_BLV)
    q = np.exp(log_q)
    scores = np.eye(33) - q[..., None, :]  # [B, L, y, V]
    expected_BLV = np.einsum("bly,blyv->blv", q * (log_q - log_p), scores)
    got_BLV = gradient(ReverseKL(), z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(got_BLV, expected_BLV, rtol=0, atol=bound(log_p, log_q))


def test_a_teacher_without_mass_where_the_student_has_some_costs_much_and_stays_finite(draw, teach, gradient):
    z_teacher_BLV = draw(1)
    z_teacher_BLV[..., 3:] = -1e30
    loss, target = ReverseKL(), teach(z_teacher_BLV)
    assert np.all(np.isfinite(loss(draw(0), target))) and np.all(loss(draw(0), target) > 1e20)
    assert np.all(np.isfinite(gradient(loss, draw(0), target)))
