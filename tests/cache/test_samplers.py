"""Samplers: which are unbiased, at which rate and with which variance, and how the others are biased, at real scales.

Redraws of one distribution are tokens with the same logits and other numbers. Statistical bounds are four standard
errors of what is measured, and the squares of the roundings of at most 50 weights.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from jaxdistill.cache.samplers import PPS, Draws, Top, TopP
from jaxdistill.errors import InputError
from jaxdistill.head import MASKED, Head
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.losses.sampled import SampledCrossEntropy
from jaxdistill.losses.targets import NO_ID, Dense, Sampled, TopK
from jaxdistill.losses.top_k import TopKDivergence
from jaxdistill.models.transformer import Config, Transformer

V, U = 2049, 2.0**-24
KEY = jax.random.key(0)
ROWS = {"flat": 0.1, "zipf": 1.0, "peaked": 3.0}


def row(kind: str, vocab_size: int) -> np.ndarray:
    """Logits of p ~ rank^-x, as fp32 has them, in random order."""
    rank_V = np.random.default_rng(0).permutation(vocab_size) + 1.0
    return (-ROWS[kind] * np.log(rank_V)).astype(np.float32)


def probabilities(z_V: np.ndarray) -> np.ndarray:
    return scipy.special.softmax(np.float64(z_V))


def repeated(z_V: np.ndarray, tokens: int) -> Dense:
    """A teacher that gives every one of `tokens` tokens the logits z_V."""
    head = Head(jnp.ones((1, tokens, 1)), jnp.asarray(z_V[:, None]), vocab_size=len(z_V))
    return Dense(jnp.zeros((1, tokens), jnp.int32), head)


@functools.partial(jax.jit, static_argnums=0)
def kept(keep, target: Dense, key=KEY, index_BL=None):
    if index_BL is None:
        index_BL = jnp.arange(target.label_BL.size).reshape(target.label_BL.shape)
    return keep(target, key, index_BL, Sharding())


def mean_of(target: Sampled, tokens: slice, vocab_size: int) -> np.ndarray:
    """The mean weight of every id over some tokens of the first sequence, float64 [V]."""
    id_TS, weight_TS = np.asarray(target.id_BLS)[0, tokens], np.asarray(target.weight_BLS, np.float64)[0, tokens]
    held_TS = id_TS != NO_ID
    return np.bincount(id_TS[held_TS], weight_TS[held_TS], minlength=vocab_size) / len(id_TS)


def variance(keep: Draws | PPS, p_V: np.ndarray) -> float:
    """Of all weights together, in closed form."""
    if isinstance(keep, PPS):
        t = scipy.optimize.brentq(lambda t: np.minimum(1, p_V / t).sum() - keep.size, 1e-12, 1.0, xtol=1e-16)
        return (p_V * np.maximum(t - p_V, 0)).sum()
    q_V = p_V**keep.exponent / (p_V**keep.exponent).sum()
    if keep.sampler == "multinomial":
        return (p_V**2 / q_V - p_V**2).sum() / keep.rounds
    f_V = keep.rounds * q_V % 1
    return (f_V * (1 - f_V) * (p_V / q_V / keep.rounds) ** 2).sum()


# The unbiased ones.


@pytest.mark.parametrize(("kind", "vocab_size"), [("flat", V), ("zipf", 32_768), ("peaked", 4096)])
@pytest.mark.parametrize("keep", [Draws(50), Draws(50, exponent=0.8), Draws(50, "systematic"), PPS(20)], ids=str)
def test_the_mean_of_redraws_nears_the_teacher_by_the_variance_over_their_number(keep, kind, vocab_size):
    z_V, tokens = row(kind, vocab_size), 1024
    p_V, target = probabilities(z_V), kept(keep, repeated(z_V, tokens))
    for redraws in (1, 4, 32):
        means = [mean_of(target, slice(i, i + redraws), vocab_size) for i in range(0, tokens, redraws)]
        square = redraws * np.array([((mean_V - p_V) ** 2).sum() for mean_V in means])
        bound = 4 * square.std(ddof=1) / math.sqrt(len(square)) + 50 * 2.0**-48
        assert abs(square.mean() - variance(keep, p_V)) < bound


@pytest.mark.parametrize("kind", ROWS)
def test_at_equal_entries_different_tokens_have_less_error_than_draws_with_replacement(kind):
    p_V = probabilities(row(kind, V))
    for rounds in (12, 50):
        entries = round(-np.expm1(rounds * np.log1p(-p_V)).sum())  # that draws keep, on average
        target = kept(PPS(entries), repeated(row(kind, V), 64))
        square_T = [((mean_of(target, slice(t, t + 1), V) - p_V) ** 2).sum() for t in range(64)]
        assert np.mean(square_T) < variance(Draws(rounds), p_V)


@pytest.fixture(scope="module")
def gradients():
    """(gradient(loss, target) in all parameters of a new student, as one vector; the teacher)."""
    B, L = 2, 32
    model = Transformer(Config(V, 2, 16, 2, 8, 32, vocab_multiple=1))
    params = jax.jit(model.init)(jax.random.key(1))
    rng = np.random.default_rng(2)
    tokens_BL, ones = rng.integers(V, size=(B, L)).astype(np.int32), np.ones((B, L), np.int32)
    h_BLD, w_VD = (rng.normal(size=shape).astype(np.float32) for shape in ((B, L, 8), (V, 8)))
    head = Head(jnp.asarray(h_BLD), jnp.asarray(0.7 * w_VD), jnp.asarray(row("zipf", V)), vocab_size=V)

    @functools.partial(jax.jit, static_argnums=0)
    def of(loss, target):
        def total(params):
            states_BLD, _ = model.hidden(params, tokens_BL, ones, np.broadcast_to(np.arange(L), (B, L)))
            return jnp.mean(loss(model.head(params, states_BLD).logits(), target))

        return jax.flatten_util.ravel_pytree(jax.grad(total)(params))[0]

    label_BL = jnp.asarray(rng.integers(V, size=(B, L)), jnp.int32)
    return lambda loss, target: np.asarray(of(loss, target), np.float64), Dense(label_BL, head)


def angle(x: np.ndarray, y: np.ndarray) -> float:
    return math.degrees(math.acos(x @ y / np.linalg.norm(x) / np.linalg.norm(y)))


@pytest.mark.parametrize("keep", [Draws(12), Draws(12, exponent=1.2), Draws(8, "systematic"), PPS(8)], ids=str)
def test_the_parameter_gradient_over_redraws_is_that_of_the_whole_teacher(gradients, keep):
    gradient, teacher = gradients
    whole, redraws = gradient(ForwardKL(), teacher), 128
    each = np.stack(
        [gradient(SampledCrossEntropy(), kept(keep, teacher, jax.random.key(seed))) for seed in range(redraws)]
    )
    spread = each.var(axis=0, ddof=1).sum()
    angles = {}
    for number in (1, 4, 16):
        means = each.reshape(-1, number, each.shape[1]).mean(axis=1)
        square = number * ((means - whole) ** 2).sum(axis=1)
        assert abs(square.mean() - spread) < 4 * square.std(ddof=1) / math.sqrt(len(square))
        angles[number] = np.mean([angle(mean, whole) for mean in means])
    assert angles[4] / angles[16] == pytest.approx(2, rel=0.1)  # small enough for an angle to be its tangent
    last = redraws * ((each.mean(axis=0) - whole) ** 2).sum()
    assert last < spread + 4 * square.std(ddof=1)


@pytest.mark.parametrize("tail", ["none", "renormalised"])
def test_the_gradient_of_top_k_is_off_by_an_angle_that_no_redraw_takes_away(gradients, tail):
    gradient, teacher = gradients
    whole, top, draws = gradient(ForwardKL(), teacher), TopKDivergence(tail=tail), SampledCrossEntropy()
    keys = [jax.random.key(seed) for seed in range(64)]
    off = [angle(gradient(top, kept(Top(12), teacher, key)), whole) for key in keys[:3]]
    assert off[0] == off[1] == off[2]
    assert off[0] > 3 * angle(np.mean([gradient(draws, kept(Draws(12), teacher, key)) for key in keys], axis=0), whole)


@pytest.mark.parametrize("rounds", [2, 50])
def test_the_divergence_of_a_sample_is_too_large_by_the_entropy_it_lacks_and_its_cross_entropy_is_right(rounds):
    z_V, tokens = row("zipf", V), 2000
    p_V, log_q_V = probabilities(z_V), scipy.special.log_softmax(np.random.default_rng(3).normal(size=V))
    target = kept(Draws(rounds), repeated(z_V, tokens))
    id_TS, w_TS = np.asarray(target.id_BLS)[0], np.asarray(target.weight_BLS, np.float64)[0]
    log_q_TS = np.where(id_TS == NO_ID, 0, log_q_V[np.minimum(id_TS, V - 1)])
    crossed_T, divergence_T = -(w_TS * log_q_TS).sum(-1), (scipy.special.xlogy(w_TS, w_TS) - w_TS * log_q_TS).sum(-1)
    c = np.arange(1, rounds + 1)
    entropy = -(scipy.stats.binom.pmf(c, rounds, p_V[:, None]) * c / rounds * np.log(c / rounds)).sum()  # E[H(w)]
    divergence = scipy.special.rel_entr(p_V, np.exp(log_q_V)).sum()
    excess = scipy.stats.entropy(p_V) - entropy
    assert excess > 1
    for found_T, expected in ((crossed_T, -(p_V * log_q_V).sum()), (divergence_T, divergence + excess)):
        assert abs(found_T.mean() - expected) < 4 * found_T.std() / math.sqrt(tokens)


@pytest.mark.parametrize("keep", [Draws(1), Draws(1, "systematic"), PPS(1)], ids=str)
def test_one_entry_is_a_label_sampled_from_the_teacher(keep):
    target, tokens = kept(keep, repeated(row("zipf", 30), 3000)), 3000
    np.testing.assert_allclose(target.weight_BLS, 1, rtol=0, atol=U)
    observed = np.bincount(np.asarray(target.id_BLS).ravel(), minlength=30)
    assert scipy.stats.chisquare(observed, tokens * probabilities(row("zipf", 30))).pvalue > 1e-3


# The biased ones.


@pytest.mark.parametrize(("tail", "sure"), [("none", True), ("renormalised", True), ("bucket", False)])
def test_the_optimum_of_top_k_is_too_sure_of_itself_unless_the_tail_is_a_bucket(tail, sure):
    z_V = row("zipf", V)
    p_V, target = probabilities(z_V), kept(Top(12), repeated(z_V, 1))
    is_kept_V = np.isin(np.arange(V), np.asarray(target.id_BLS))
    a = p_V[is_kept_V].sum()
    overconfident_V = np.where(is_kept_V, np.log(p_V / a), -40.0)

    def slope(z_V):
        return np.asarray(jax.grad(lambda z: TopKDivergence(tail=tail)(z, target).sum())(jnp.float32(z_V[None, None])))

    at_teacher, at_overconfident = (np.abs(slope(z)).max() for z in (np.log(p_V), overconfident_V))
    nothing = 64 * U  # logs below 40, each rounded once or twice, times probabilities below 1
    assert (at_overconfident < nothing < 1e-2 < at_teacher) if sure else (at_teacher < nothing < at_overconfident)


@pytest.mark.parametrize("mass", [0.3, 0.9])
def test_top_p_keeps_the_smallest_set_that_has_the_mass(mass):
    rng = np.random.default_rng(4)
    h_BLD, w_VD = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8, 16), (300, 16)))
    head = Head(jnp.asarray(h_BLD), jnp.asarray(w_VD), vocab_size=300)
    target = kept(TopP(mass, 100), Dense(jnp.zeros((2, 8), jnp.int32), head))
    p_BLV = scipy.special.softmax(np.float64(head.logits()), axis=-1)
    sizes = set()
    for p_V, id_S, logp_S, logtail in zip(
        p_BLV.reshape(16, -1), *(np.asarray(x).reshape(16, *x.shape[2:]) for x in
        (target.id_BLS, target.logp_BLS, target.logtail_BL)), strict=True,
    ):  # fmt: skip
        order = np.argsort(-p_V)
        enough = np.searchsorted(p_V[order].cumsum(), mass) + 1
        size = min(enough, 100)
        np.testing.assert_array_equal(id_S[:size], order[:size])
        assert np.all(id_S[size:] == NO_ID) and np.all(logp_S[size:] == np.float32(MASKED))
        np.testing.assert_allclose(np.exp(logp_S[:size]), p_V[order[:size]], rtol=64 * U)
        np.testing.assert_allclose(np.exp(logtail), 1 - p_V[order[:size]].sum(), atol=64 * U)
        sizes.add(size)
    assert len(sizes) > 3


def test_top_p_that_its_most_entries_cut_short_is_top_k():
    target = repeated(row("flat", 300), 2)
    cut, top = kept(TopP(0.99, 20), target), kept(Top(20), target)
    jax.tree.map(np.testing.assert_array_equal, cut, top)
    assert isinstance(cut, TopK)


# All of them.


@pytest.mark.parametrize("keep", [Top(7), TopP(0.5, 7), Draws(7), Draws(7, "systematic", 0.8), PPS(7)], ids=str)
def test_what_is_kept_depends_on_the_token_and_not_on_its_batch(keep):
    rng = np.random.default_rng(5)
    h_BLD, w_VD = rng.integers(-16, 17, size=(4, 6, 8)) / 8, rng.integers(-64, 65, size=(V, 8)) / 64  # exact logits
    index_BL = np.arange(24).reshape(4, 6)

    def of(h_BLD, index_BL):
        head = Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), vocab_size=V)
        return kept(keep, Dense(jnp.zeros(index_BL.shape, jnp.int32), head), KEY, jnp.asarray(index_BL))

    whole, order = of(h_BLD, index_BL), np.array([2, 0, 3])
    part = of(h_BLD[order, 2:], index_BL[order, 2:])
    assert whole.id_BLS.shape == (4, 6, keep.size)
    np.testing.assert_array_equal(part.id_BLS, np.asarray(whole.id_BLS)[order, 2:])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Top(0), r"Top\.k is 0; it must be at least 1"),
        (lambda: TopP(0.0, 5), r"TopP\.mass is 0\.0; it must be above 0 and at most 1"),
        (lambda: TopP(float("nan"), 5), r"TopP\.mass is nan"),
        (lambda: TopP(0.9, 0), r"TopP\.most is 0; it must be at least 1"),
        (lambda: Draws(0), r"Draws\.rounds is 0; it must be at least 1 and at most 32768"),
        (lambda: Draws(5, "gumbel"), "no sampler 'gumbel'; there are 'multinomial' and 'systematic'"),  # ty: ignore
        (lambda: Draws(5, exponent=0.0), r"Draws\.exponent is 0\.0; it must be above 0"),
        (lambda: PPS(2**15 + 1), r"PPS\.size is 32769; it must be at least 1 and at most 32768"),
        (lambda: kept(PPS(31), repeated(row("flat", 30), 1)), "size is 31; it must be between 1 and 30"),
        (lambda: kept(Top(31), repeated(row("flat", 30), 1)), "k is 31; it must be between 1 and the vocabulary's"),
    ],
)
def test_numbers_that_no_token_can_have_are_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
