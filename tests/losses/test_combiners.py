"""Combiners of gradients, on trees of the structure of parameters, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.losses.combiners import ClipEach, GradMag, GradNorm, PCGrad

NAMES = ("a", "b", "c")
VALUES = {"a": 2.0, "b": 0.5, "c": 3.0}
COMBINERS = [GradMag(), GradMag("all"), GradNorm(), ClipEach(2.0), PCGrad()]


def tree(seed, factor=1.0):
    rng = np.random.default_rng(seed)
    w_DF, embed_VD = rng.normal(size=(12, 2, 3)) * rng.normal(size=(12, 1, 1)), rng.normal(size=(5, 2))
    return {"layers": {"w_DF": jnp.float32(factor * w_DF)}, "embed_VD": jnp.float32(factor * embed_VD)}


def flat(gradient):
    return np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(gradient)])


def combine(combiner, gradients, values=VALUES, state=None):
    state = combiner.init(tuple(gradients)) if state is None else state
    got, after, notes = combiner(gradients, values, state)
    return flat(got), after, {name.removeprefix("weight/"): float(x) for name, x in notes.items()}


@pytest.fixture(scope="module")
def gradients():
    return {name: tree(seed, factor) for seed, (name, factor) in enumerate(zip(NAMES, (1.0, 30.0, 1e-3), strict=True))}


@pytest.mark.parametrize("combiner", COMBINERS, ids=str)
def test_one_term_alone_keeps_its_gradient_but_for_a_clip(combiner, gradients):
    got, *_ = combine(combiner, {"a": gradients["a"]})
    own = flat(gradients["a"])
    scale = min(1, 2 / np.linalg.norm(own)) if isinstance(combiner, ClipEach) else 1
    np.testing.assert_allclose(got, scale * own, rtol=1e-6)


@pytest.mark.parametrize("of", ["last", "all"])
def test_gradmag_makes_norms_equal_and_does_not_feel_the_scale_of_a_loss(gradients, of):
    got, _, weights = combine(GradMag(of), gradients)
    norms = {n: np.linalg.norm(flat(g if of == "all" else g["layers"]["w_DF"][-1])) for n, g in gradients.items()}
    moved = [weights[name] * norms[name] for name in NAMES]
    np.testing.assert_allclose(moved, moved[0], rtol=1e-5)
    np.testing.assert_allclose(sum(weights.values()), 1, rtol=1e-6)
    np.testing.assert_allclose(got, sum(weights[name] * flat(gradients[name]) for name in NAMES), rtol=1e-4, atol=1e-8)
    larger, *_ = combine(GradMag(of), gradients | {"b": tree(1, 30.0 * 64)})
    np.testing.assert_allclose(larger / np.linalg.norm(larger), got / np.linalg.norm(got), rtol=1e-4, atol=1e-7)


def test_gradmag_of_a_term_twice_is_that_of_the_term_and_a_term_without_gradient_has_no_part(gradients):
    own = flat(gradients["a"])
    twice, *_ = combine(GradMag(), {"a": gradients["a"], "again": gradients["a"]})
    np.testing.assert_allclose(twice, own, rtol=1e-6)
    nothing = jax.tree.map(jnp.zeros_like, gradients["a"])
    np.testing.assert_allclose(combine(GradMag(), {"a": gradients["a"], "b": nothing})[0], own, rtol=1e-6)
    np.testing.assert_array_equal(combine(GradMag(), {"a": nothing, "b": nothing})[0], 0)


def test_the_last_layer_is_the_last_of_the_stack_though_there_be_more_than_ten(gradients):
    others = jax.tree.map(lambda x: x, gradients["a"])
    others["layers"]["w_DF"] = others["layers"]["w_DF"].at[:-1].multiply(100.0)
    _, _, weights = combine(GradMag(), {"a": gradients["a"], "b": others})
    assert weights["a"] == weights["b"] == 0.5


def test_gradnorm_is_its_definition_over_two_steps(gradients):
    combiner = GradNorm(alpha=0.5, rate=0.025)
    norms = np.array([np.linalg.norm(flat(gradients[name]["layers"]["w_DF"][-1])) for name in NAMES])
    got, state, weights = combine(combiner, gradients)
    assert set(weights.values()) == {1.0}
    np.testing.assert_allclose(got, sum(flat(gradients[name]) for name in NAMES), rtol=1e-4, atol=1e-6)
    expected, later = np.ones(3), {"a": 1.0, "b": 0.5, "c": 0.3}
    for values in (VALUES, later):
        ratio = np.array([values[name] / VALUES[name] for name in NAMES])
        size = expected * norms
        expected = np.maximum(expected - 0.025 * np.sign(size - size.mean() * (ratio / ratio.mean()) ** 0.5) * norms, 0)
        expected *= 3 / expected.sum()
        np.testing.assert_allclose([state[f"weight/{name}"] for name in NAMES], expected, rtol=1e-4)
        got, state, _ = combine(combiner, gradients, later, state)


def test_each_gradient_is_clipped_by_itself(gradients):
    got, _, weights = combine(ClipEach(2.0), gradients)
    norms = {name: np.linalg.norm(flat(gradient)) for name, gradient in gradients.items()}
    assert norms["b"] > 2 > norms["c"] and weights["c"] == 1
    expected = sum(min(1, 2 / norms[name]) * flat(gradients[name]) for name in NAMES)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_pcgrad_takes_out_what_points_against_another_and_nothing_else(gradients):
    a, b = gradients["a"], jax.tree.map(lambda x, y: y - 2 * x, gradients["a"], tree(7))
    x, y = flat(a), flat(b)
    assert x @ y < 0
    got, *_ = combine(PCGrad(), {"a": a, "b": b})
    np.testing.assert_allclose(got, (x - x @ y / (y @ y) * y) + (y - x @ y / (x @ x) * x), rtol=1e-3, atol=1e-5)
    agreeing = {"a": a, "b": jax.tree.map(lambda x: 3 * x, a)}
    np.testing.assert_allclose(combine(PCGrad(), agreeing)[0], 4 * x, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradMag("first"), "GradMag.of is 'first'"),
        (lambda: GradNorm(alpha=-1), "GradNorm has alpha -1"),
        (lambda: ClipEach(0), "ClipEach.norm is 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
