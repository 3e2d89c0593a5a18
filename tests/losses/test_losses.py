"""The losses on logits alone, against closed forms and limits. A head with the unit matrix stands for logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.targets import Dense, Labels
from jaxdistill.losses.z_loss import ZLoss

U = 2.0**-24
V = 33


def logits(seed, spread=1.0, vocab_size=V):
    return spread * np.random.default_rng(seed).normal(size=(2, 3, vocab_size)).astype(np.float32)


def dense(z_BLV, padding=0) -> Dense:
    """A teacher whose logits are these; padded columns would be 1000 if they counted."""
    vocab_size = z_BLV.shape[-1]
    h_BLD = np.concatenate([z_BLV, np.ones((*z_BLV.shape[:2], 1))], axis=-1)
    w_VD = np.concatenate([np.eye(vocab_size, vocab_size + 1), 1000 * np.ones((padding, vocab_size + 1))])
    head = Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), vocab_size=vocab_size)
    return Dense(jnp.zeros(z_BLV.shape[:2], jnp.int32), head)


def kl64(z_teacher, z, temperature=1.0):
    logp, logq = (special.log_softmax(np.float64(x) / temperature, axis=-1) for x in (z_teacher, z))
    return temperature**2 * (np.exp(logp) * (logp - logq)).sum(-1)


def kl_bound(*sides, temperature=1.0):
    """What fp32 may get wrong: each normaliser is off by 2 sqrt(V) u, and each log by a few u of its size."""
    logs = max(np.abs(special.log_softmax(np.float64(z) / temperature, axis=-1)).max() for z in sides)
    return temperature**2 * (4 * np.sqrt(sides[0].shape[-1]) * U + 4 * U * logs)


def gradient(loss, z_BLV, target):
    return np.asarray(jax.grad(lambda z_BLV: loss(z_BLV, target).sum())(jnp.asarray(z_BLV)))


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 30.0])
def test_forward_kl_is_not_negative_and_not_symmetric(spread):
    z_BLV, z_teacher_BLV = logits(0, spread), logits(1, spread)
    forward, backward = ForwardKL()(z_BLV, dense(z_teacher_BLV)), ForwardKL()(z_teacher_BLV, dense(z_BLV))
    assert np.all(forward > 0) and np.all(backward > 0)
    bound = kl_bound(z_BLV, z_teacher_BLV)
    np.testing.assert_allclose(forward, kl64(z_teacher_BLV, z_BLV), rtol=0, atol=bound)
    np.testing.assert_allclose(backward, kl64(z_BLV, z_teacher_BLV), rtol=0, atol=bound)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_forward_kl_is_zero_at_the_teacher_and_flat_there(temperature):
    z_BLV = logits(0, spread=5.0)
    assert np.array_equal(ForwardKL(temperature)(z_BLV, dense(z_BLV)), np.zeros((2, 3)))
    q_BLV = special.softmax(np.float64(z_BLV) / temperature, axis=-1)
    # p sums to one up to its roundings: u of log p for each, and the normaliser
    bound_BLV = temperature * q_BLV * kl_bound(z_BLV, temperature=temperature) / temperature**2
    assert np.all(np.abs(gradient(ForwardKL(temperature), z_BLV, dense(z_BLV))) <= bound_BLV)


def test_a_small_forward_kl_between_close_bfloat16_models_survives_rounding():
    z_teacher_BLV = np.asarray(jnp.asarray(logits(0, 3.0, 4096), jnp.bfloat16), np.float32)
    noise_BLV = 0.1 * np.random.default_rng(2).normal(size=z_teacher_BLV.shape)
    z_BLV = np.asarray(jnp.asarray(z_teacher_BLV + noise_BLV, jnp.bfloat16), np.float32)
    expected_BL = kl64(z_teacher_BLV, z_BLV)
    assert expected_BL.max() < 0.01
    bound = kl_bound(z_BLV, z_teacher_BLV)
    assert bound < 0.01 * expected_BL.min()
    np.testing.assert_allclose(ForwardKL()(z_BLV, dense(z_teacher_BLV)), expected_BL, rtol=0, atol=bound)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_the_gradient_of_forward_kl_is_temperature_times_q_minus_p(temperature):
    z_BLV, z_teacher_BLV = logits(0, 2.0), logits(1, 2.0)
    q_BLV, p_BLV = (special.softmax(np.float64(z) / temperature, axis=-1) for z in (z_BLV, z_teacher_BLV))
    got_BLV = gradient(ForwardKL(temperature), z_BLV, dense(z_teacher_BLV))
    np.testing.assert_allclose(got_BLV, temperature * (q_BLV - p_BLV), rtol=0, atol=temperature * V * U)
    value_BL = ForwardKL(temperature)(z_BLV, dense(z_teacher_BLV))
    bound = kl_bound(z_BLV, z_teacher_BLV, temperature=temperature)
    np.testing.assert_allclose(value_BL, kl64(z_teacher_BLV, z_BLV, temperature), rtol=0, atol=bound)


def test_at_a_high_temperature_forward_kl_is_half_the_variance_of_the_difference():
    # log softmax(z / T) = z / T - log V - mean(z) / T + O(1 / T^2) (Hinton et al. 2015, eq. 4, up to the factor 1 / V).
    z_BLV, z_teacher_BLV = logits(0), logits(1)
    limit_BL = np.var(np.float64(z_teacher_BLV) - z_BLV, axis=-1) / 2
    off = [np.abs(ForwardKL(T)(z_BLV, dense(z_teacher_BLV)) - limit_BL).max() for T in (5.0, 10.0, 20.0)]
    assert off[1] < 0.6 * off[0] and off[2] < 0.6 * off[1] and off[2] < 0.1 * limit_BL.min()


def test_at_a_low_temperature_only_the_teachers_choice_counts():
    # T^2 KL / T -> max(z) - z[argmax z_teacher]
    z_BLV, z_teacher_BLV = logits(0, 10.0), logits(1, 10.0)
    chosen_BL = np.take_along_axis(z_BLV, z_teacher_BLV.argmax(-1)[..., None], axis=-1)[..., 0]
    got_BL = ForwardKL(0.01)(z_BLV, dense(z_teacher_BLV)) / 0.01
    np.testing.assert_allclose(got_BL, z_BLV.max(-1) - chosen_BL, rtol=1e-4)


@pytest.mark.parametrize("shift", [-40.0, -5.0, 5.0, 40.0])
@pytest.mark.parametrize("padding", [0, 7])
def test_a_shift_of_all_logits_changes_no_probability_and_so_no_loss(shift, padding):
    z_BLV, z_teacher_BLV = logits(0), logits(1)
    wide_BLV = np.pad(z_BLV + shift, ((0, 0), (0, 0), (0, 5)), constant_values=-1e30)
    got_BL = ForwardKL()(wide_BLV, dense(z_teacher_BLV - shift, padding))
    # the shifted logits themselves are rounded by u |shift|, and so are the normalisers
    np.testing.assert_allclose(got_BL, kl64(z_teacher_BLV, z_BLV), rtol=1e-5, atol=8 * U * 48)
    label_BL = Labels(jnp.full((2, 3), 4, jnp.int32))
    np.testing.assert_allclose(
        CrossEntropy()(z_BLV + np.float32(shift), label_BL), CrossEntropy()(z_BLV, label_BL), rtol=0, atol=8 * U * 48
    )


def test_forward_kl_from_a_certain_teacher_is_cross_entropy():
    z_BLV, label_BL = logits(0, 3.0), np.random.default_rng(3).integers(V, size=(2, 3))
    certain = dense(100 * np.eye(V, dtype=np.float32)[label_BL])  # exp(-100) is no fp32 number beside 1
    cross_entropy_BL = CrossEntropy()(z_BLV, Labels(jnp.asarray(label_BL)))
    np.testing.assert_allclose(ForwardKL()(z_BLV, certain), cross_entropy_BL, rtol=1e-6)
    np.testing.assert_allclose(
        gradient(ForwardKL(), z_BLV, certain), gradient(CrossEntropy(), z_BLV, Labels(label_BL)), rtol=0, atol=V * U
    )


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 30.0, 1e4])
def test_cross_entropy_is_minus_the_log_probability_and_its_gradient_p_minus_one_at_the_label(spread):
    z_BLV, label_BL = logits(0, spread), np.random.default_rng(3).integers(V, size=(2, 3))
    hot_BLV = np.eye(V)[label_BL]
    expected_BL = -(special.log_softmax(np.float64(z_BLV), axis=-1) * hot_BLV).sum(-1)
    got_BL = CrossEntropy()(z_BLV, Labels(label_BL))
    np.testing.assert_allclose(got_BL, expected_BL, rtol=0, atol=4 * U * np.abs(z_BLV).max() + V * U)
    p_BLV = special.softmax(np.float64(z_BLV), axis=-1)
    error_BLV = p_BLV * 4 * U * np.abs(z_BLV).max() + 4 * U
    assert np.all(np.abs(gradient(CrossEntropy(), z_BLV, Labels(label_BL)) - (p_BLV - hot_BLV)) <= error_BLV)


def test_cross_entropy_of_a_uniform_distribution_is_the_log_of_its_size():
    got_BL = CrossEntropy()(jnp.full((1, 1, 151_936), 3.0), Labels(jnp.zeros((1, 1), jnp.int32)))
    np.testing.assert_allclose(got_BL, np.log(151_936), rtol=4 * U)


def test_z_loss_is_the_square_of_the_log_normaliser_with_gradient_twice_that_times_p():
    z_BLV = logits(0, 3.0)
    lse_BL = special.logsumexp(np.float64(z_BLV), axis=-1)
    target = Labels(jnp.zeros((2, 3), jnp.int32))
    np.testing.assert_allclose(ZLoss()(z_BLV, target), lse_BL**2, rtol=1e-6)
    expected_BLV = 2 * lse_BL[..., None] * special.softmax(np.float64(z_BLV), axis=-1)
    np.testing.assert_allclose(gradient(ZLoss(), z_BLV, target), expected_BLV, rtol=1e-5)


def test_z_loss_does_not_punish_logits_that_are_already_log_probabilities():
    z_BLV = special.log_softmax(np.float64(logits(0, 3.0)), axis=-1).astype(np.float32)
    assert np.all(ZLoss()(z_BLV, Labels(jnp.zeros((2, 3), jnp.int32))) <= (V * U) ** 2)


def test_forward_kl_without_a_teacher_is_refused_in_one_sentence():
    with pytest.raises(InputError, match=r"^ForwardKL needs .* not Labels: set experiment\.teacher"):
        ForwardKL()(logits(0), Labels(jnp.zeros((2, 3), jnp.int32)))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(InputError, match=r"temperature is .* it must be above 0"):
        ForwardKL(temperature)
