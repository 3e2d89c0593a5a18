"""Weights that make alignment objectives: against the objectives themselves, differentiated."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.policy_weights import OverGap, OverRewardStd, Preference
from jaxdistill.losses.statistics import MassBelowTeacher, TeacherCrossEntropy, ToReference
from jaxdistill.losses.total_variation import TotalVariation
from jaxdistill.losses.transforms import L1Gap

U = 2.0**-24


def test_the_gradient_of_dpo_with_the_teacher_as_reference_is_weighted_cross_entropy(draw, teach):
    shape = (2, 6)
    z_BLV, z_teacher_BLV = jnp.asarray(draw(0, shape=shape)), draw(1, shape=shape)
    label_BL = np.random.default_rng(2).integers(33, size=shape)
    target, beta = teach(z_teacher_BLV, label_BL), 0.7
    signals = {
        "preference": jnp.asarray([[1, 1, -1, 0, 1, -1], [-1, -1, -1, 1, 0, 0]]),  # two pairs in the first row
        "pair": jnp.asarray([[1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1]]),
    }
    weight_BL = jnp.asarray([[1.0] * 6, [1.0] * 5 + [0.0]])

    def dpo(z_BLV):
        log_ratio_BL = TeacherCrossEntropy()(z_BLV, target) - CrossEntropy()(z_BLV, target)
        gain_BL = signals["preference"] * log_ratio_BL * weight_BL
        margins = jnp.stack([gain_BL[0, :4].sum(), gain_BL[0, 4:].sum(), gain_BL[1].sum()])
        return -jnp.sum(jax.nn.log_sigmoid(beta * margins))

    preference = Preference(beta)
    values = {name: loss(z_BLV, target) for name, loss in preference.statistics().items()}
    w_BL = preference(values, target, weight_BL, signals)
    assert np.any(w_BL < 0) and w_BL[1, 5] == 0
    got_BLV = jax.grad(lambda z_BLV: jnp.sum(w_BL * CrossEntropy()(z_BLV, target)))(z_BLV)
    np.testing.assert_allclose(got_BLV, jax.grad(dpo)(z_BLV), rtol=0, atol=64 * U)


def test_total_variation_over_the_std_of_its_reward_is_the_policy_gradient_with_a_normalised_advantage(draw, teach):
    z_BLV, z_teacher_BLV = jnp.asarray(draw(0)), draw(1)
    target, weight_BL = teach(z_teacher_BLV), jnp.asarray([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    p, q = (np.asarray(jax.nn.softmax(z), np.float64) for z in (z_teacher_BLV, z_BLV))
    reward, counts = 1.0 * (p > q), np.asarray(weight_BL)
    mean = (counts * (q * reward).sum(-1)).sum() / counts.sum()
    std = np.sqrt((counts * (q * (reward - mean) ** 2).sum(-1)).sum() / counts.sum())
    advantage = (reward - mean) / std
    expected_BLV = -counts[..., None] * q * (advantage - (q * advantage).sum(-1, keepdims=True))
    weight = OverRewardStd()
    w_BL = weight({"rewarded": MassBelowTeacher()(z_BLV, target)}, target, weight_BL, {})
    got_BLV = jax.grad(lambda z_BLV: jnp.sum(w_BL * TotalVariation()(z_BLV, target)))(z_BLV)
    np.testing.assert_allclose(got_BLV, expected_BLV, rtol=0, atol=64 * U)


def test_a_batch_in_which_both_models_agree_keeps_its_weights():
    w_BL = OverRewardStd()({"rewarded": jnp.zeros((2, 3))}, None, jnp.ones((2, 3)), {})
    np.testing.assert_array_equal(w_BL, 1)


def test_the_strength_goes_down_as_the_gap_between_the_two_models_goes_up(draw, teach):
    z, away = draw(1), draw(2)
    target = teach(z, away=away)
    weight = OverGap("away", L1Gap(10.0), beta=0.1)
    ((name, statistic),) = weight.statistics().items()
    assert statistic == ToReference(TotalVariation(), "away")
    w_BL = weight({name: statistic(draw(0), target)}, target, jnp.ones((2, 3)), {})
    p, r = (np.asarray(jax.nn.softmax(x), np.float64) for x in (z, away))
    np.testing.assert_allclose(w_BL, 0.1 / (10 * np.abs(p - r).sum(-1) + 1e-3), rtol=64 * U)
