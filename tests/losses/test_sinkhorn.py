"""Sinkhorn distillation against an assignment solver and a plain implementation in float64."""

import numpy as np
import pytest
from scipy import optimize, special

from jaxdistill.errors import InputError
from jaxdistill.losses.sinkhorn import Sinkhorn

SHAPE = (2, 8)


def costs(z_BLV, z_teacher_BLV, window, temperature=2.0):
    q, p = (special.softmax(np.float64(z) / temperature, -1) for z in (z_BLV, z_teacher_BLV))
    q, p = (x.reshape(-1, window, x.shape[-1]) for x in (q, p))
    return np.abs(q[:, :, None] - p[:, None]).sum(-1)


@pytest.mark.parametrize("window", [1, 4, 8])
def test_it_is_the_cost_of_the_plan_after_twenty_normalisations(draw, teach, window):
    z_BLV, z_teacher_BLV = draw(0, 2.0, shape=SHAPE), draw(1, 2.0, shape=SHAPE)
    cost = costs(z_BLV, z_teacher_BLV, window)
    plan = np.exp(-cost / 0.1)
    for _ in range(20):
        plan /= plan.sum(-1, keepdims=True)
        plan /= plan.sum(-2, keepdims=True)
    got_BL = Sinkhorn(window)(z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(got_BL, (plan * cost).sum(-1).reshape(SHAPE), rtol=2e-5)  # -cost / 0.1 has 20 ulp


def test_with_little_regularisation_it_is_the_cost_of_the_best_assignment(draw, teach):
    z_BLV, z_teacher_BLV = draw(0, 3.0, shape=SHAPE), draw(1, 3.0, shape=SHAPE)
    best = [c[optimize.linear_sum_assignment(c)].sum() for c in costs(z_BLV, z_teacher_BLV, 4)]
    got_BL = Sinkhorn(4, epsilon=1e-3, iterations=2000)(z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(np.asarray(got_BL).reshape(-1, 4).sum(-1), best, rtol=1e-2)


def test_a_permuted_window_costs_nothing_at_a_small_epsilon_and_something_at_a_large_one(draw, teach, gradient):
    z_BLV = draw(0, 3.0, shape=SHAPE)
    target = teach(z_BLV[:, [1, 2, 3, 0, 7, 6, 5, 4]])
    assert np.all(Sinkhorn(4, epsilon=0.02)(z_BLV, target) < 1e-4)
    assert np.all(Sinkhorn(4, epsilon=1.0)(z_BLV, target) > 0.1)
    assert np.all(np.isfinite(gradient(Sinkhorn(4, epsilon=1e-3), z_BLV, target)))


def test_its_gradient_is_that_of_finite_differences(draw, teach, gradient):
    z_BLV, z_teacher_BLV = draw(0, 2.0, 9, (1, 4)), draw(1, 2.0, 9, (1, 4))
    slope_BLV = gradient(Sinkhorn(4), z_BLV, teach(z_teacher_BLV))

    def exact(z_BLV):
        log_plan = -(cost := costs(z_BLV, z_teacher_BLV, 4)) / 0.1
        for axis in (-1, -2) * 20:
            log_plan = log_plan - special.logsumexp(log_plan, axis=axis, keepdims=True)
        return (np.exp(log_plan) * cost).sum()

    for v in range(9):
        step = np.zeros_like(z_BLV, np.float64)
        step[0, 1, v] = 1e-6
        slope = (exact(z_BLV + step) - exact(z_BLV - step)) / 2e-6
        np.testing.assert_allclose(slope_BLV[0, 1, v], slope, rtol=1e-3, atol=1e-6)


def test_a_regularisation_of_nothing_is_refused():
    with pytest.raises(InputError, match=r"epsilon 0.0 .* each must be above 0"):
        Sinkhorn(4, epsilon=0.0)


def test_windows_that_do_not_fill_the_positions_are_refused(draw, teach):
    with pytest.raises(InputError, match=r"windows of 3 positions and got 8: choose `positions`"):
        Sinkhorn(3)(draw(0, shape=SHAPE), teach(draw(1, shape=SHAPE)))
