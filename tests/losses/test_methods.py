"""The table of published methods: every row runs streamed as defined, and says what its paper's limits say."""

import ast
import dataclasses
import functools
import inspect
import itertools
import pathlib
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import dims
from jaxdistill.head import Head
from jaxdistill.losses import methods
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.linear_heads.api import token_weights, weighted_sum
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.targets import NO_ID, Dense, Labels, Sampled, TopK
from jaxdistill.losses.weights import Length

B, L, V = 2, 16, 2049
DOCS = pathlib.Path(__file__).parents[2] / "docs" / "methods.md"
METHODS = {name: f for name, f in inspect.getmembers(methods, inspect.isfunction) if f.__module__ == methods.__name__}
CACHED = ("top_k", "random_sampling_kd")
ACROSS = ("uld_aligned", "gold", "dskd")  # of two tokenizers: tests/test_alongside.py
REFERENCES = ("second", "draft", "reverse", "base", "tuned")
KNOBS = {"taid_t": 0.3, "index_BL": jnp.arange(B * L).reshape(B, L), "temperature_BL": jnp.full((B, L), 2.0)}


def random_head(rng, width, padding=0):
    w_VD = rng.normal(size=(V + padding, width)) * 2 / np.sqrt(width)
    w_VD[V:] = 1000
    return Head(jnp.asarray(rng.normal(size=(B, L, width)), jnp.float32), jnp.asarray(w_VD, jnp.float32), vocab_size=V)


@functools.cache
def case():
    """(student, target with references, weights of the data, signals); padding differs, and some tokens count for 0."""
    rng = np.random.default_rng(0)
    heads = {name: random_head(rng, 5) for name in REFERENCES}
    label_BL = jnp.asarray(rng.integers(V, size=(B, L)), jnp.int32)
    signals = {
        name: jnp.asarray(rng.integers(2, size=(B, L)), jnp.float32) for name in ("forget", "retain", "rejected")
    }
    signals |= {"chosen": 1 - signals["rejected"], "preference": 1 - 2 * signals["rejected"]}
    signals |= {"pair": jnp.ones((B, L), jnp.int32), "paired": signals["chosen"], "unpaired": signals["rejected"]}
    weight_BL = jnp.asarray(rng.choice([0.0, 0.5, 1.0], size=(B, L)), jnp.float32)
    return random_head(rng, 6, 127), Dense(label_BL, random_head(rng, 7, 63), heads), weight_BL, signals


def run(terms, head=None, target=None, weight_BL=None, signals=None, knobs=KNOBS, **how):
    """(total, values of the terms, gradient in the hidden states and the embedding)"""
    default = case()
    head, target, weight_BL = (x if y is None else y for x, y in zip(default, (head, target, weight_BL), strict=False))
    objective, knobs = Objective.of(terms), knobs | {name: term.at(0, 1) for name, term in terms.items()}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(head):
        weights = token_weights(objective, head, target, weight_BL, knobs, default[3] | (signals or {}))
        return weighted_sum(objective, head, target, weight_BL, knobs, weights=weights, **how)

    (total, values), gradient = total(head)
    return float(total), values, [np.asarray(gradient.h_BLD), np.asarray(gradient.w_VD)]


def agree(one, other, tolerance=2e-6):
    """Totals and gradients are the same up to roundings of fp32 in sums of thousands of terms."""
    np.testing.assert_allclose(one[0], other[0], rtol=tolerance)
    for got, expected in zip(one[2], other[2], strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@functools.cache
def all_streamed():
    """Every method that takes a whole teacher, in one objective: (terms, what `run` gives for them)."""
    named = {name: make() for name, make in METHODS.items() if name not in (*CACHED, *ACROSS)}
    terms = {f"{name}/{term}": value for name, method in named.items() for term, value in method.items()}
    return terms, run(terms, positions=8)


def test_every_method_streams_as_it_is_defined():
    # the gradient is the sum over methods, so one that is wrong shows; each term's values are checked apart
    terms, got = all_streamed()
    expected = run(terms, implementation="reference")
    for name, value_BL in expected[1].items():
        np.testing.assert_allclose(got[1][name], value_BL, rtol=1e-5, atol=1e-4, err_msg=name)
        assert np.all(np.isfinite(value_BL)) and np.any(value_BL != 0), name
    agree(got, expected, 1e-5)
    assert not np.any(got[2][1][V:])


def test_tokens_that_do_not_count_may_hold_anything_in_every_method():
    head, target, weight_BL, signals = case()

    def spoilt(x, rubbish=np.nan):
        return jnp.where((weight_BL != 0).reshape(weight_BL.shape + (1,) * (x.ndim - 2)), x, rubbish)

    def spoil(head):
        return dataclasses.replace(head, h_BLD=spoilt(head.h_BLD))

    references = {name: spoil(head) for name, head in target.references.items()}
    target = Dense(spoilt(target.label_BL, -100), spoil(target.head), references)
    signals = {name: spoilt(x) if x.dtype == jnp.float32 else x for name, x in signals.items()}
    knobs = KNOBS | {"temperature_BL": spoilt(KNOBS["temperature_BL"])}
    terms, expected = all_streamed()
    got = run(terms, spoil(head), target, signals=signals, knobs=knobs, positions=8)
    agree(got, expected)
    assert not np.any(got[2][0][np.asarray(weight_BL) == 0])


def test_numbers_of_each_token_are_cut_into_chunks_with_their_tokens():
    knobs = KNOBS | {"temperature_BL": 1 + jnp.arange(B * L).reshape(B, L) / 8}
    agree(run(methods.swing(), knobs=knobs, positions=5), run(methods.swing(), knobs=knobs, implementation="reference"))


@pytest.mark.parametrize("tail", ["bucket", "none", "renormalised", "label", "uniform"])
def test_every_tail_of_a_cached_teacher_streams_as_it_is_defined(tail):
    target = case()[1]
    logp_BLS, id_BLS = jax.lax.top_k(jax.nn.log_softmax(target.head.logits()), 8)
    top = TopK.of(target.label_BL, id_BLS.at[..., 7].set(NO_ID), logp_BLS.at[..., 7].set(-1e30))
    terms = methods.top_k(tail)
    agree(run(terms, target=top, positions=5), run(terms, target=top, implementation="reference"), 1e-5)


def test_random_sampling_streams_as_it_is_defined_in_both_modes():
    target = case()[1]
    logp_BLS, id_BLS = jax.lax.top_k(jax.nn.log_softmax(target.head.logits()), 8)
    sample = Sampled(target.label_BL, id_BLS, jnp.exp(logp_BLS))
    expected = run(methods.random_sampling_kd(), target=sample, implementation="reference")
    agree(run(methods.random_sampling_kd(), target=sample, positions=5), expected)
    agree(run(methods.random_sampling_kd(), target=sample, mode="recompute"), expected)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_at_most_ten_lines_tells_its_needs_and_is_a_row_of_the_docs(name):
    function = METHODS[name]
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    body = tree.body[1:]
    assert body[-1].end_lineno - body[0].lineno < 10
    assert "needs" in inspect.getdoc(function).lower()
    assert f"| `{name}`" in DOCS.read_text()


def only(name, terms):
    return {name: next(iter(terms.values()))}


def test_limits_in_which_methods_are_plain_distillation():
    plain = run(only("kl", methods.llava_mod_mimic()))
    agree(run(methods.gkd(0.0)), plain)
    agree(run(methods.adaspec(fraction=1.0)), plain)
    agree(run(methods.dynamic_logit_fusion(0.0)), plain)
    agree(run(methods.iterated_self_distillation(0.0)), plain)
    agree(run(methods.taid(), knobs=KNOBS | {"taid_t": 1.0}), plain)
    agree(run(methods.swing(noise=0.0), knobs=KNOBS | {"temperature_BL": jnp.ones((B, L))}), plain)
    agree(run(methods.online_speculative(), signals={"rejected": jnp.ones((B, L))}), plain)
    agree(run(methods.word_kd(label=0.0)), plain)


def test_limits_in_which_methods_are_supervised_learning_by_sequences():
    by_sequence = run({"ce": Term(CrossEntropy(), weight=Length())})
    ones = {"chosen": jnp.ones((B, L)), "rejected": jnp.ones((B, L))}
    agree(run(only("chosen", methods.redi()), signals=ones), by_sequence)
    # rejected answers enter with the opposite sign
    total, _, gradient = run(methods.redi(alpha=1.0), signals=ones)
    assert abs(total) < 1e-5 and max(np.abs(g).max() for g in gradient) < 1e-6
    by_sequence = run({"kl": Term(methods.ForwardKL(), weight=Length())})
    agree(run(methods.tsld(tau=1e6)), by_sequence, 1e-4)


def test_equal_teachers_count_as_one():
    target = case()[1]
    same = Dense(target.label_BL, target.head, {"second": target.head})
    for method in (methods.baby_llama, methods.mt_dnn):
        alone = {name: Term(term.loss, term.coef) for name, term in method().items()}
        agree(run(method(), target=same), run(alone, target=same), 1e-5)


def test_nothing_rejected_is_no_loss_and_no_gradient():
    total, _, gradient = run(methods.online_speculative_mixed(), signals={"rejected": jnp.zeros((B, L))})
    assert total == 0 and not any(g.any() for g in gradient)


def test_unlearning_needs_no_teacher():
    target = case()[1]
    agree(run(methods.unilogit(), target=Labels(target.label_BL)), run(methods.unilogit()))


def test_aligning_is_reverse_kl_whose_strength_falls_with_the_gap():
    # beta / w times RKL to softmax(z + w (z - z_reverse)), per sequence: the definition, on whole logits
    head, target, weight_BL, _ = case()
    z, reverse = target.head.logits()[..., :V], target.references["reverse"].logits()
    w = 10 * jnp.sum(jnp.abs(jax.nn.softmax(z) - jax.nn.softmax(reverse)), -1, keepdims=True) + 1e-3
    log_p = jax.nn.log_softmax(z + w * (z - reverse))

    def loss(head):
        log_q = jax.nn.log_softmax(head.logits()[..., :V])
        rkl_BL = jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1)
        return jnp.sum(weight_BL / jnp.sum(weight_BL, -1, keepdims=True) * 0.1 / w[..., 0] * rkl_BL)

    expected, gradient = jax.value_and_grad(loss)(head)
    got = run(methods.align_distil())
    agree(got, (float(expected), None, [np.asarray(gradient.h_BLD), np.asarray(gradient.w_VD)]), 1e-5)


def test_supervised_learning_on_a_teachers_text_has_the_gradient_of_the_divergence_of_sequences(draw):
    # an enumerable language model of two steps: the second distribution depends on the first token
    size = 3
    teacher = [jax.nn.log_softmax(draw(seed, 1.0, size, shape))[0] for seed, shape in ((0, (1, 1)), (1, (1, size)))]
    student = [jnp.asarray(draw(seed, 1.0, size, shape))[0] for seed, shape in ((2, (1, 1)), (3, (1, size)))]

    def log_probability(logits, first, second):
        return jax.nn.log_softmax(logits[0])[0, first] + jax.nn.log_softmax(logits[1])[first, second]

    def divergence(student):
        pairs = list(itertools.product(range(size), repeat=2))
        logp = jnp.stack([log_probability(teacher, *pair) for pair in pairs])
        logq = jnp.stack([log_probability(student, *pair) for pair in pairs])
        return jnp.sum(jnp.exp(logp) * (logp - logq))

    def expected_cross_entropy(student):
        total = 0.0
        for first, second in itertools.product(range(size), repeat=2):
            z_BLV = jnp.stack([student[0][0], student[1][first]])[None]
            loss_BL = CrossEntropy()(z_BLV, Labels(jnp.asarray([[first, second]])))
            total += jnp.exp(log_probability(teacher, first, second)) * jnp.sum(loss_BL)
        return total

    got, expected = jax.grad(expected_cross_entropy)(student), jax.grad(divergence)(student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), got, expected)


def test_a_longer_sequence_of_the_same_tokens_has_the_same_mean():
    # "batchmean" on [B, L, V] divides by B alone: a silent factor of L in BabyLlama and LLM-QAT
    head, target, weight_BL, _ = case()

    def twice(tree):
        double = lambda path, x: jnp.concatenate([x, x], axis=1) if dims.per_token(path) else x  # noqa: E731
        return jax.tree_util.tree_map_with_path(double, tree)

    target = Dense(target.label_BL, target.head)
    once = run(methods.word_kd(), target=target, knobs={})
    double = run(methods.word_kd(), twice(head), twice(target), jnp.tile(weight_BL, (1, 2)), knobs={})
    np.testing.assert_allclose(double[0] / (2 * weight_BL.sum()), once[0] / weight_BL.sum(), rtol=1e-6)
    np.testing.assert_allclose(double[2][1] / 2, once[2][1], atol=1e-5)


def test_the_loss_that_the_docs_write_runs_in_every_mode_and_is_what_its_name_says():
    source = DOCS.read_text().split("```python")[1].split("```")[0]
    names: dict = {"__name__": "docs"}
    exec(source, names)
    loss = names["SquaredHellinger"]()
    head, target, _, _ = case()
    p, q = (np.asarray(jax.nn.softmax(h.logits()[..., :V]), np.float64) for h in (target.head, head))
    terms = {"hellinger": Term(loss)}
    _, values, _ = expected = run(terms, implementation="reference")
    counts = np.asarray(case()[2]) != 0
    np.testing.assert_allclose(values["hellinger"], counts * (1 - np.sqrt(p * q).sum(-1)), atol=1e-5)
    agree(run(terms, positions=5), expected, 1e-5)
    agree(run(terms, mode="recompute"), expected, 1e-5)
