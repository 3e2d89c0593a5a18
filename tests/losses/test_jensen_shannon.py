"""Jensen-Shannon with a weight: the identity with skewed KL, both ends, and the normalised forms."""

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.jensen_shannon import JensenShannon
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.skew import SkewForwardKL, SkewReverseKL

U = 2.0**-24


def exact(log_p, log_q, beta):
    log_m = np.logaddexp(np.log(beta) + log_p, np.log1p(-beta) + log_q)
    return (beta * np.exp(log_p) * (log_p - log_m) + (1 - beta) * np.exp(log_q) * (log_q - log_m)).sum(-1)


@pytest.mark.parametrize("beta", [1e-4, 0.1, 0.5, 0.7, 0.9999])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_the_weight_is_the_teachers_part_in_the_mixture(draw, teach, logs, bound, spread, beta):
    z_BLV, z_teacher_BLV = draw(0, spread), draw(1, spread)
    log_p, log_q = logs(z_teacher_BLV, z_BLV)
    got_BL = JensenShannon(beta)(z_BLV, teach(z_teacher_BLV))
    slack = bound(log_p, log_q) * min(beta, 1 - beta)  # errors are of the size of the value
    np.testing.assert_allclose(got_BL, exact(log_p, log_q, beta), rtol=0, atol=2 * slack)
    entropy = -beta * np.log(beta) - (1 - beta) * np.log1p(-beta)
    assert np.all(got_BL <= entropy * (1 + 16 * U))


def test_its_gradient_is_that_of_the_closed_form(draw, teach, logs, gradient, bound):
    z_BLV, z_teacher_BLV, beta, T = draw(0, 3.0), draw(1, 3.0), 0.3, 2.0
    log_p, log_q = logs(z_teacher_BLV, z_BLV, T=T)
    p, q = np.exp(log_p), np.exp(log_q)
    g = (1 - beta) * np.log(q / (beta * p + (1 - beta) * q))  # d/dq: both mixtures' own terms cancel in the sum
    expected_BLV = T * q * (g - (q * g).sum(-1, keepdims=True))
    got_BLV = gradient(JensenShannon(beta, temperature=T), z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(got_BLV, expected_BLV, rtol=0, atol=bound(log_p, log_q, T))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_it_is_the_sum_of_two_skewed_divergences(draw, teach, logs, bound, beta):
    z_BLV, z_teacher_BLV = draw(0, 3.0), draw(1, 3.0)
    target, slack = teach(z_teacher_BLV), bound(*logs(z_teacher_BLV, z_BLV))
    forward, reverse = SkewForwardKL(beta)(z_BLV, target), SkewReverseKL(1 - beta)(z_BLV, target)
    np.testing.assert_allclose(
        JensenShannon(beta)(z_BLV, target), beta * forward + (1 - beta) * reverse, rtol=0, atol=slack
    )


def test_at_one_half_it_is_symmetric(draw, teach):
    a, b = draw(0, 3.0), draw(1, 3.0)
    np.testing.assert_allclose(JensenShannon()(a, teach(b)), JensenShannon()(b, teach(a)), rtol=1e-5)


def test_its_ends_are_the_two_kls_and_it_vanishes_next_to_them(draw, teach, gradient):
    # the jump that TRL and GKD have: a value near an end is not near the value at the end
    z_BLV, target = draw(0, 3.0), teach(draw(1, 3.0))
    for end, near, plain in ((0.0, 1e-4, ForwardKL()), (1.0, 1 - 1e-4, ReverseKL())):
        np.testing.assert_array_equal(JensenShannon(end)(z_BLV, target), plain(z_BLV, target))
        np.testing.assert_array_equal(gradient(JensenShannon(end), z_BLV, target), gradient(plain, z_BLV, target))
        assert np.all(JensenShannon(near)(z_BLV, target) < 1e-3 * plain(z_BLV, target))


@pytest.mark.parametrize(("normalised", "plain"), [("forward", ForwardKL()), ("reverse", ReverseKL())])
def test_the_normalised_form_is_continuous_with_the_kl_at_its_end(draw, teach, gradient, normalised, plain):
    z_BLV, target = draw(0, 1.0), teach(draw(1, 1.0))
    expected_BL, expected_BLV = plain(z_BLV, target), gradient(plain, z_BLV, target)
    far = []
    for step in (1e-2, 1e-3, 0.0):
        loss = JensenShannon(step if normalised == "forward" else 1 - step, normalised)
        far.append(np.abs(loss(z_BLV, target) - expected_BL).max())
        assert np.abs(gradient(loss, z_BLV, target) - expected_BLV).max() <= 30 * step + 64 * U
    assert far[0] < 0.3 and far[1] < 0.2 * far[0] and far[2] == 0


def test_the_normalised_form_keeps_its_precision_where_a_mixture_of_probabilities_would_lose_it(draw, teach, logs):
    z_BLV, z_teacher_BLV, beta = draw(0, 0.1), draw(1, 0.1), 1e-5
    log_p, log_q = logs(z_teacher_BLV, z_BLV)
    expected_BL = exact(log_p, log_q, beta) / beta
    got_BL = JensenShannon(beta, "forward")(z_BLV, teach(z_teacher_BLV))
    assert expected_BL.max() < 0.02
    np.testing.assert_allclose(got_BL, expected_BL, rtol=0, atol=32 * np.sqrt(33) * U)


def test_normalising_divides_by_the_weight_of_that_end_and_changes_nothing_else(draw, teach):
    z_BLV, target = draw(0), teach(draw(1))
    plain_BL = JensenShannon(0.25)(z_BLV, target)
    np.testing.assert_allclose(JensenShannon(0.25, "forward")(z_BLV, target), plain_BL / 0.25, rtol=64 * U)
    np.testing.assert_allclose(JensenShannon(0.25, "reverse")(z_BLV, target), plain_BL / 0.75, rtol=64 * U)


@pytest.mark.parametrize(
    "options",
    [{"beta": -0.1}, {"beta": 1.1}, {"beta": 1.0, "normalised": "forward"}, {"beta": 0.0, "normalised": "reverse"}],
)
def test_a_weight_outside_or_an_end_where_nothing_is_left_is_refused(options):
    with pytest.raises(InputError, match=r"JensenShannon.beta is .* it must lie from 0 to 1"):
        JensenShannon(**options)


def test_a_normalisation_that_does_not_exist_is_refused_by_name():
    with pytest.raises(InputError, match="normalised is 'both'"):
        JensenShannon(0.5, "both")
