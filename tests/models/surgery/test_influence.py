"""Scores of layers, against closed forms and float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.models.surgery import influence, patterns
from jaxdistill.models.transformer import Transformer

U = 2.0**-24


def random_states(number=5, shape=(3, 7, 16), seed=0):
    return np.random.default_rng(seed).normal(size=(number, *shape)).astype(np.float32)


def exact_cosine(a, b, weight_BL):
    a, b = np.float64(a), np.float64(b)
    cos_BL = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return (weight_BL * cos_BL).sum() / weight_BL.sum()


BOUND = 2 * (16 + 3) * U + 2 * math.sqrt(21) * U  # a cosine of 16 terms, and a mean of 21 of them


@pytest.mark.parametrize("span", [1, 2, 4])
def test_scores_are_weighted_means_over_tokens(span):
    states, weight_BL = random_states(), np.random.default_rng(1).random((3, 7)).astype(np.float32)
    got = influence.cosine(jax.jit(influence.cosine_sums, static_argnames="span")(list(states), weight_BL, span=span))
    exact = [exact_cosine(a, b, np.float64(weight_BL)) for a, b in zip(states, states[span:], strict=False)]
    np.testing.assert_allclose(got, exact, rtol=0, atol=BOUND)
    assert got.shape == (5 - span,)


def test_a_layer_that_does_nothing_has_no_influence_and_one_that_turns_around_has_the_most():
    h = random_states(1)[0]
    orthogonal = np.roll(h * np.tile([1, -1], 8), 1, axis=-1)  # (a, b) to (-b, a), in pairs
    orthogonal = np.stack([-h[..., 1::2], h[..., ::2]], axis=-1).reshape(h.shape)
    sums = influence.cosine_sums([h, 3 * h, -h, orthogonal], np.ones((3, 7)))
    np.testing.assert_allclose(influence.influence(sums), [0, 2, 1], rtol=0, atol=BOUND)


def test_scores_do_not_depend_on_the_scale_of_states():
    states, ones = random_states(), np.ones((3, 7), np.float32)
    scaled = [scale * h for scale, h in zip((1, 100, 0.01, 7, 1e-3), states, strict=True)]
    a, b = (influence.influence(influence.cosine_sums(list(x), ones)) for x in (states, scaled))
    np.testing.assert_allclose(a, b, rtol=0, atol=2 * BOUND)


def test_padding_does_not_count_whatever_it_holds():
    states, weight_BL = random_states(), np.ones((3, 7), np.float32)
    weight_BL[:, 5:] = 0
    dirty = states.copy()
    dirty[:, :, 5], dirty[:, :, 6] = np.nan, np.inf
    clean = influence.cosine_sums([h[:, :5] for h in states], weight_BL[:, :5])
    got = influence.cosine_sums(list(dirty), weight_BL)
    np.testing.assert_allclose(influence.influence(got), influence.influence(clean), rtol=0, atol=BOUND)


def test_a_state_of_norm_zero_has_the_cosine_zero():
    h = random_states(1)[0]
    assert influence.cosine_sum(h, 0 * h, np.ones((3, 7))) == 0


def test_sums_of_batches_add_to_those_of_all_tokens():
    states, weight_BL = random_states(), np.random.default_rng(1).random((3, 7)).astype(np.float32)
    parts = [influence.cosine_sums([h[i : i + 1] for h in states], weight_BL[i : i + 1]) for i in range(3)]
    got = influence.influence(jax.tree.map(lambda *x: sum(x), *parts))
    whole = influence.influence(influence.cosine_sums(list(states), weight_BL))
    np.testing.assert_allclose(got, whole, rtol=0, atol=BOUND)


@pytest.mark.parametrize("config", ["ours", "gemma3", "opt"], indirect=True)
def test_the_stream_of_a_model_is_what_enters_its_layers(config, draw_params, tokens_BL):
    """The state before the first layer is the output of a model whose layers add nothing."""
    model, params = Transformer(config), draw_params(config)
    silent = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if path[-1].key in {"o_HKD", "o_bias_D", "down_FD", "down_bias_D"} else x,
        params,
    )
    if config.design.residual == "sandwich":  # its second norms alone decide what is added
        gain = -1.0 if config.design.norm.unit_offset else 0.0
        for name in ("attention_post_norm_D", "mlp_post_norm_D"):
            silent["layers"][name] = jnp.full_like(silent["layers"][name], gain)
    states = jax.jit(lambda p: influence.stream(model, p, tokens_BL))(params)
    kept = jax.jit(lambda p: model.hidden(p, tokens_BL, keep=range(6))[1])(params)
    unchanged = jax.jit(lambda p: model.hidden(p, tokens_BL, keep=(5,))[1][5])(silent)
    assert len(states) == 7
    np.testing.assert_array_equal(states[0], unchanged)
    for n in range(6):
        np.testing.assert_array_equal(states[n + 1], kept[n])


def test_the_layer_without_influence_is_the_one_that_goes(configs, draw_params, tokens_BL):
    config, silent = configs["ours"], 3
    params = draw_params(config)
    for part, name in (("attention", "o_HKD"), ("mlp", "down_FD")):
        params["layers"][part][name] = params["layers"][part][name].at[silent].set(0)
    states = jax.jit(lambda p: influence.stream(Transformer(config), p, tokens_BL))(params)
    scores = influence.influence(influence.cosine_sums(states, np.ones((2, 9))))
    assert abs(scores[silent]) <= BOUND and patterns.highest(scores, 5) == (0, 1, 2, 4, 5)
    assert patterns.drop_run(scores, 6) == (0, 1, 2, 4, 5)


def test_the_cosine_of_texts_is_that_of_all_their_tokens_at_once():
    a, b = random_states(2)
    weight_BL = np.ones((3, 7), np.float32)
    weight_BL[0, 4:] = 0
    a[0, 4:] = np.nan
    got = influence.text_cosine(a, b, weight_BL)
    flat = [[np.float64(x[i, : 4 if i == 0 else 7]).ravel() for x in (a, b)] for i in range(3)]
    exact = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in flat]
    np.testing.assert_allclose(got, exact, rtol=0, atol=2 * math.sqrt(7 * 16) * U * 3)
    assert influence.text_cosine(b, b, 0 * weight_BL).tolist() == [0, 0, 0]


@pytest.mark.parametrize("span", [0, 5])
def test_a_run_longer_than_the_model_is_refused(span):
    with pytest.raises(
        InputError, match=rf"^a run of {span} layers is asked for, of 4: ask for at least 1 and at most"
    ):
        influence.cosine_sums(list(random_states()), np.ones((3, 7)), span)


def test_scores_of_no_tokens_are_refused():
    with pytest.raises(
        InputError, match=r"^no token counts, so no layer has a score: give batches with weights above 0"
    ):
        influence.influence(influence.cosine_sums(list(random_states()), np.zeros((3, 7))))
