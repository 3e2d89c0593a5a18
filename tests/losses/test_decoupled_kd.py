"""Decoupled KD: the decomposition of KL, its gradient, and certainty on either side."""

import numpy as np
import pytest

from jaxdistill.losses.decoupled_kd import DecoupledKD
from jaxdistill.losses.forward_kl import ForwardKL


def parts(log_p, log_q, label_BL):
    """(TCKD, NCKD) in float64, from probabilities."""
    hot = np.eye(log_p.shape[-1])[label_BL]
    p, q = np.exp(log_p), np.exp(log_q)
    py, qy = (p * hot).sum(-1), (q * hot).sum(-1)
    tckd = py * np.log(py / qy) + (1 - py) * np.log((1 - py) / (1 - qy))
    rest_p, rest_q = (x * (1 - hot) / (1 - xy)[..., None] for x, xy in ((p, py), (q, qy)))
    nckd = np.where(hot > 0, 0, rest_p * (np.log(rest_p + hot) - np.log(rest_q + hot))).sum(-1)
    return tckd, nckd, py, qy, rest_p, rest_q, hot


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)])
def test_both_parts_and_their_gradients_are_the_closed_forms(
    draw, teach, logs, gradient, bound, alpha, beta, temperature
):
    z_BLV, z_teacher_BLV = draw(0, 2.0), draw(1, 2.0)
    label_BL = np.arange(6).reshape(2, 3)
    log_p, log_q = logs(z_teacher_BLV, z_BLV, T=temperature)
    tckd, nckd, py, qy, rest_p, rest_q, hot = parts(log_p, log_q, label_BL)
    loss, target = DecoupledKD(alpha, beta, temperature), teach(z_teacher_BLV, label_BL)
    slack = 4 * bound(log_p, log_q, temperature)
    np.testing.assert_allclose(loss(z_BLV, target), temperature**2 * (alpha * tckd + beta * nckd), rtol=0, atol=slack)
    # d TCKD / d z_label = q_y - p_y; the others share its opposite as q does; d NCKD / dz = q' - p' without the label
    of_label = (qy - py)[..., None] * (hot - rest_q)
    expected_BLV = temperature * (alpha * of_label + beta * (rest_q - rest_p))
    np.testing.assert_allclose(gradient(loss, z_BLV, target), expected_BLV, rtol=0, atol=slack)


def test_kl_is_the_part_of_the_label_and_the_rest_weighed_by_what_the_teacher_leaves_it(draw, teach, logs, bound):
    z_BLV, z_teacher_BLV, label_BL = draw(0, 2.0), draw(1, 2.0), np.arange(6).reshape(2, 3)
    target, (log_p, log_q) = teach(z_teacher_BLV, label_BL), logs(z_teacher_BLV, z_BLV)
    left_BL = 1 - np.take_along_axis(np.exp(log_p), label_BL[..., None], -1)[..., 0]
    tckd, nckd = DecoupledKD(1.0, 0.0)(z_BLV, target), DecoupledKD(0.0, 1.0)(z_BLV, target)
    np.testing.assert_allclose(tckd + left_BL * nckd, ForwardKL()(z_BLV, target), rtol=0, atol=4 * bound(log_p, log_q))


@pytest.mark.parametrize("certain", ["teacher", "student", "both"])
def test_it_holds_where_the_probability_of_the_label_rounds_to_one(draw, teach, logs, both, bound, certain):
    z_BLV, z_teacher_BLV, label_BL = draw(0), draw(1), np.full((2, 3), 7)
    if certain != "teacher":
        z_BLV[..., 7] += 60
    if certain != "student":
        z_teacher_BLV[..., 7] += 60
    log_p, log_q = logs(z_teacher_BLV, z_BLV)
    without = [np.delete(x, 7, -1) for x in (z_teacher_BLV, z_BLV)]
    rest_p, rest_q = logs(*without)
    expected_BL = (np.exp(rest_p) * (rest_p - rest_q)).sum(-1)
    loss, target = DecoupledKD(0.0, 1.0), teach(z_teacher_BLV, label_BL)
    np.testing.assert_allclose(loss(z_BLV, target), expected_BL, rtol=0, atol=bound(log_p, log_q))
    for alpha, beta in ((0.0, 1.0), (1.0, 0.0)):
        got_BL, got_BLV = both(DecoupledKD(alpha, beta), z_BLV, target)
        assert np.all(np.isfinite(got_BL)) and np.all(np.isfinite(got_BLV))
