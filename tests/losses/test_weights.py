"""Weights of tokens: what they sum to, whom they choose, and that padding and sequences stay apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.statistics import MassBelowTeacher, TeacherCrossEntropy, TeacherEntropy, ToReference
from jaxdistill.losses.total_variation import TotalVariation
from jaxdistill.losses.weights import Entropy, LargestGap, Length, Product, Signal, TokenScaled

U = 2.0**-24
WEIGHT_BL = jnp.asarray([[1.0, 1.0, 0.5, 0.0], [1.0, 2.0, 0.0, 0.0]])
SEGMENT = {"segment": jnp.asarray([[1, 1, 2, 2], [1, 2, 2, 0]])}
X_BL = jnp.asarray([[0.1, 2.0, 3.0, np.nan], [0.5, 0.25, np.inf, np.nan]])  # what padding may hold


def test_a_signal_multiplies_the_weight_may_be_negative_and_may_hold_anything_where_nothing_counts():
    got_BL = Signal("advantage")({}, None, WEIGHT_BL, {"advantage": -X_BL})
    np.testing.assert_allclose(got_BL, [[-0.1, -2, -1.5, 0], [-0.5, -0.5, 0, 0]], rtol=4 * U)
    with pytest.raises(InputError, match=r"no signal 'advantage' \(there are: 'segment'\)"):
        Signal("advantage")({}, None, WEIGHT_BL, SEGMENT)


def test_a_signal_that_rejects_nothing_leaves_no_weight_and_no_zero_over_zero():
    # online speculative decoding divided by an empty mask
    assert not np.any(Signal("rejected")({}, None, WEIGHT_BL, {"rejected": jnp.zeros((2, 4))}))


def test_every_sequence_counts_for_one_by_row_or_by_segment():
    np.testing.assert_allclose(Length()({}, None, WEIGHT_BL, {}).sum(-1), 1, rtol=4 * U)
    got_BL = Length()({}, None, WEIGHT_BL, SEGMENT)
    np.testing.assert_allclose(got_BL, [[0.5, 0.5, 1, 0], [1, 1, 0, 0]], rtol=4 * U)
    assert not np.any(Length()({}, None, jnp.zeros((2, 4)), {}))


def test_a_product_hands_each_weight_what_the_one_before_it_gave():
    both = Product((Length(), Signal("a")))
    got_BL = both({}, None, WEIGHT_BL, {"a": 2 + 0 * WEIGHT_BL})
    np.testing.assert_allclose(got_BL, 2 * Length()({}, None, WEIGHT_BL, {}), rtol=4 * U)


def test_the_weights_of_a_product_keep_their_statistics_apart():
    one, other = Entropy(10), TokenScaled()
    both, entropy_BL = Product((one, other)), jnp.asarray([[1.0, 2.0, 0.5, 1.0]] * 2)
    assert dict(both.statistics()) == {"0/entropy": TeacherEntropy(), "1/teacher": TeacherCrossEntropy()}
    got_BL = both({"0/entropy": entropy_BL, "1/teacher": X_BL}, None, WEIGHT_BL, {})
    first_BL = one({"entropy": entropy_BL}, None, WEIGHT_BL, {})
    np.testing.assert_array_equal(got_BL, other({"teacher": X_BL}, None, first_BL, {}))


@pytest.mark.parametrize("signals", [{}, SEGMENT], ids=["rows", "segments"])
def test_token_scaled_weights_are_a_softmax_over_the_sequence_and_tend_to_the_plain_mean(signals):
    weigh = lambda tau: np.asarray(TokenScaled(tau)({"teacher": X_BL}, None, WEIGHT_BL, signals))  # noqa: E731
    np.testing.assert_allclose(weigh(1e6), Length()({}, None, WEIGHT_BL, signals), rtol=1e-5)
    first = (0, slice(0, 2)) if signals else (0, slice(0, 3))
    expected = np.asarray(WEIGHT_BL[first]) * np.exp(np.float64(X_BL[first]) / 0.5)
    np.testing.assert_allclose(weigh(0.5)[first], expected / expected.sum(), rtol=32 * U)
    assert weigh(0.5)[0, 0] < weigh(0.5)[0, 1]  # the teacher is surer of the first token
    assert not weigh(0.5)[WEIGHT_BL == 0].any()


def test_token_scaled_weights_do_not_overflow():
    with pytest.raises(InputError, match=r"TokenScaled.tau is 0; it must be above 0"):
        TokenScaled(0)
    got_BL = TokenScaled(0.01)({"teacher": 30 * jnp.ones((1, 3))}, None, jnp.ones((1, 3)), {})
    np.testing.assert_allclose(got_BL, 1 / 3, rtol=8 * U)


@pytest.mark.parametrize("fraction", [0.25, 0.4, 1.0])
def test_the_largest_gaps_are_chosen_over_the_whole_batch_whatever_its_shape(fraction):
    rng = np.random.default_rng(0)
    values = {"student": rng.normal(size=(4, 5)), "reference": rng.normal(size=(4, 5))}
    weight_BL = np.float32(rng.choice([0.0, 1.0, 2.0], size=(4, 5)))
    gap, counts = values["student"] - values["reference"], weight_BL != 0
    chosen = gap >= np.quantile(gap[counts], 1 - fraction)
    values = {name: jnp.asarray(x, jnp.float32) for name, x in values.items()}
    got_BL = LargestGap("draft", fraction)(values, None, jnp.asarray(weight_BL), {})
    np.testing.assert_array_equal(got_BL, weight_BL * chosen)
    flat = {name: x.reshape(2, 10) for name, x in values.items()}
    np.testing.assert_array_equal(
        LargestGap("draft", fraction)(flat, None, jnp.asarray(weight_BL).reshape(2, 10), {}).reshape(4, 5), got_BL
    )


def test_all_ties_stay_as_at_the_start_from_the_reference():
    same = {"student": jnp.ones((2, 4)), "reference": jnp.ones((2, 4))}
    np.testing.assert_array_equal(LargestGap("draft")(same, None, WEIGHT_BL, {}), WEIGHT_BL)
    with pytest.raises(InputError, match="fraction is 0; it must be above 0"):
        LargestGap("draft", 0)


def test_entropy_weighs_between_a_certain_and_a_uniform_teacher():
    values = {"entropy": jnp.asarray([[0.0, np.log(10.0), np.log(10.0) / 2, np.nan]] * 2)}
    got_BL = Entropy(10, power=2.0)(values, None, WEIGHT_BL, {})
    np.testing.assert_allclose(got_BL[0], [0, 1, 0.125, 0], rtol=8 * U)
    ones = Entropy(10, power=0.0)(values, None, WEIGHT_BL, {})
    np.testing.assert_array_equal(ones[0], WEIGHT_BL[0])


def test_no_weight_passes_a_gradient():
    def total(x_BL):
        values, signals = {"student": x_BL, "reference": 0 * x_BL, "teacher": x_BL, "entropy": x_BL}, {"x": x_BL}
        weights = (Signal("x"), TokenScaled(), Entropy(10), LargestGap("draft"))
        return sum(jnp.sum(weight(values, None, WEIGHT_BL, signals)) for weight in weights)

    assert not np.any(jax.grad(total)(jnp.abs(jnp.nan_to_num(X_BL, posinf=1.0))))


def test_statistics_are_the_numbers_they_say(draw, teach, logs):
    z_BLV, z_teacher_BLV, z_draft_BLV = draw(0), draw(1), draw(2)
    label_BL = np.arange(6).reshape(2, 3)
    target = teach(z_teacher_BLV, label_BL, draft=z_draft_BLV)
    log_p, log_q, log_r = logs(z_teacher_BLV, z_BLV, z_draft_BLV)
    p, q, r = np.exp(log_p), np.exp(log_q), np.exp(log_r)
    cool_p, cool_r = logs(z_teacher_BLV, z_draft_BLV, T=2.0)
    expected = {
        TeacherCrossEntropy(): -np.take_along_axis(log_p, label_BL[..., None], -1)[..., 0],
        TeacherEntropy(): special.entr(p).sum(-1),
        MassBelowTeacher(): (q * (p > q)).sum(-1),
        ToReference(ForwardKL(), "draft"): (p * (log_p - log_r)).sum(-1),
        ToReference(ForwardKL(2.0), "draft"): 4 * (np.exp(cool_p) * (cool_p - cool_r)).sum(-1),
        ToReference(TotalVariation(), "draft"): np.abs(p - r).sum(-1) / 2,
    }
    for statistic, value_BL in expected.items():
        np.testing.assert_allclose(statistic(z_BLV, target), value_BL, rtol=1e-5, atol=64 * U, err_msg=str(statistic))
    with pytest.raises(InputError, match=r"no reference model 'other' .* \(there are: 'draft'\)"):
        ToReference(ForwardKL(), "other")(z_BLV, target)
