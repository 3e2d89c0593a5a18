"""Losses on hidden states: definitions, scale, padding and zero norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.losses.states import ChannelSquare, CosineDistance, MeanSquare, SquareHead

U = 2.0**-24
LOSSES = [MeanSquare(), CosineDistance(), SquareHead(), ChannelSquare()]
WEIGHT_BL = jnp.asarray([[1.0, 0.5, 0.0], [1.0, 1.0, 2.0]])


def states(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape or (2, 3, 5)).astype(np.float32)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_equal_states_cost_nothing_and_token_of_no_weight_neither(loss):
    h_BLD = states(0)
    np.testing.assert_allclose(loss(h_BLD, h_BLD, WEIGHT_BL), 0, atol=8 * U)
    assert loss(h_BLD, states(1), WEIGHT_BL)[0, 2] == 0


def test_each_is_its_definition():
    h, t, counts = np.float64(states(0)), np.float64(states(1)), np.asarray(WEIGHT_BL) != 0
    square_BL = ((h - t) ** 2).mean(-1) * counts
    np.testing.assert_allclose(MeanSquare()(states(0), states(1), WEIGHT_BL), square_BL, rtol=16 * U)
    cosine_BL = (h * t).sum(-1) / np.linalg.norm(h, axis=-1) / np.linalg.norm(t, axis=-1)
    np.testing.assert_allclose(CosineDistance()(states(0), states(1), WEIGHT_BL), (1 - cosine_BL) * counts, atol=16 * U)
    size = (t**2).mean(-1)[counts].mean()
    np.testing.assert_allclose(SquareHead()(states(0), states(1), WEIGHT_BL), square_BL / size, rtol=16 * U)


def test_channels_are_measured_by_what_the_teacher_has_in_the_row():
    h, t, counts = states(0), states(1), np.asarray(WEIGHT_BL) != 0
    h[..., 2], t[..., 2] = 1.0, 0.0  # a silent channel
    expected_BL = np.zeros((2, 3))
    for row in range(2):
        own = np.float64(t[row])[counts[row]]
        with np.errstate(divide="ignore"):
            share_D = np.where((own**2).mean(0) > 0, 1 / (own**2).mean(0), 0)
        expected_BL[row] = ((np.float64(h[row]) - t[row]) ** 2 * share_D).mean(-1) * counts[row]
    np.testing.assert_allclose(ChannelSquare()(h, t, WEIGHT_BL), expected_BL, rtol=32 * U)
    scale_D = 2.0 ** np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(
        ChannelSquare()(h * scale_D, t * scale_D, WEIGHT_BL), ChannelSquare()(h, t, WEIGHT_BL)
    )
    whole, alone = (
        ChannelSquare()(h, t, WEIGHT_BL),
        [ChannelSquare()(h[n:][:1], t[n:][:1], WEIGHT_BL[n:][:1]) for n in (0, 1)],
    )
    np.testing.assert_allclose(whole, np.concatenate(alone), rtol=8 * U)


def test_square_head_does_not_feel_a_common_scale_and_weighs_each_layer_by_its_own():
    h_NBLD, t_NBLD = states(0, 4, 2, 3, 5), states(1, 4, 2, 3, 5)
    scale = np.float32([1, 2, 16, 128]).reshape(4, 1, 1, 1)  # powers of two are exact
    plain, scaled = (SquareHead()(s * h_NBLD, s * t_NBLD, WEIGHT_BL) for s in (1, scale))
    np.testing.assert_array_equal(plain, scaled)
    np.testing.assert_allclose(plain[2], SquareHead()(h_NBLD[2], t_NBLD[2], WEIGHT_BL), rtol=8 * U)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("rubbish", [np.nan, np.inf, 0.0])
def test_padding_of_any_content_and_states_of_norm_zero_give_finite_values_and_gradients(loss, rubbish):
    h_BLD, t_BLD = states(0), states(1)
    h_BLD[0, 2], t_BLD[0, 2] = rubbish, rubbish
    h_BLD[1, 1] = 0  # a token that counts
    value, slope_BLD = jax.value_and_grad(lambda h: jnp.sum(loss(h, t_BLD, WEIGHT_BL)))(jnp.asarray(h_BLD))
    assert np.isfinite(value) and np.all(np.isfinite(slope_BLD)) and not np.any(slope_BLD[0, 2])


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_no_gradient_reaches_the_teacher_and_bfloat16_is_compared_in_float32(loss):
    h_BLD, t_BLD = (jnp.asarray(states(seed), jnp.bfloat16) for seed in (0, 1))
    assert loss(h_BLD, t_BLD, WEIGHT_BL).dtype == jnp.float32
    assert not np.any(jax.grad(lambda t: jnp.sum(loss(h_BLD, t, WEIGHT_BL)))(t_BLD))


def test_states_of_two_widths_are_refused_with_the_way_out():
    with pytest.raises(InputError, match=r"\[2, 3, 5\] of the student and \[2, 3, 7\] of the teacher .* project"):
        MeanSquare()(states(0), states(1, 2, 3, 7), WEIGHT_BL)
