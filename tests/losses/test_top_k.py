"""Top-K targets: the gradient of every tail, the limits K = V and K = 0, and faults seen elsewhere."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.jensen_shannon import JensenShannon
from jaxdistill.losses.labels import UniformTail
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.targets import NO_ID, Labels, TopK
from jaxdistill.losses.top_k import FLOOR, TopKDivergence
from jaxdistill.losses.total_variation import NegativeLogAcceptance, TotalVariation

U, V, K = 2.0**-24, 33, 5
LABEL = np.arange(6).reshape(2, 3)


def probabilities(z_BLV, z_teacher_BLV, k=K):
    """(p on the kept tokens and 0 elsewhere, q, which are kept, a, b), float64."""
    p, q = (special.softmax(np.float64(z), axis=-1) for z in (z_teacher_BLV, z_BLV))
    kept = np.argsort(np.argsort(-p, axis=-1, kind="stable"), axis=-1) < k
    return p * kept, q, kept, (p * kept).sum(-1, keepdims=True), (q * kept).sum(-1, keepdims=True)


def closed_form(tail, p, q, kept, a, b):
    """(loss, gradient in the logits) of forward KL with this tail."""
    hot = np.eye(V)[LABEL]
    if tail == "none":
        return (p * np.log(np.where(kept, p / q, 1))).sum(-1), a * q - p
    if tail == "renormalised":
        return (p / a * np.log(np.where(kept, p / a / q, 1))).sum(-1), q - p / a
    if tail == "label":
        target = p + (1 - a) * hot
        return (target * np.log(np.where(target > 0, target / q, 1))).sum(-1), q - target
    loss = (p * np.log(np.where(kept, p / q, 1))).sum(-1) + ((1 - a) * np.log((1 - a) / (1 - b)))[..., 0]
    return loss, np.where(kept, q - p, q * (a - b) / (1 - b))


@pytest.mark.parametrize("tail", ["bucket", "none", "renormalised", "label"])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_value_and_both_of_every_tail_are_those_of_the_published_table(draw, top_of, logs, both, bound, spread, tail):
    z_BLV, z_teacher_BLV = draw(0, spread), draw(1, spread)
    p, q, kept, a, b = probabilities(z_BLV, z_teacher_BLV)
    loss_BL, expected_BLV = closed_form(tail, p, q, kept, a, b)
    target, loss = top_of(z_teacher_BLV, K, LABEL), TopKDivergence(tail=tail)
    slack = bound(*logs(z_teacher_BLV, z_BLV)) / (1 - b).min()  # 1 - b is taken from a sum
    got_BL, got_BLV = both(loss, z_BLV, target)
    np.testing.assert_allclose(got_BL, loss_BL, rtol=0, atol=slack)
    np.testing.assert_allclose(got_BLV, expected_BLV, rtol=0, atol=slack)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL, JensenShannon, TotalVariation])
def test_it_is_zero_where_student_and_teacher_agree_at_every_temperature(draw, top_of, both, divergence, temperature):
    # a tail that is tempered as if it were one token costs 0.26 nats here (DistillKit's symmetric_uniform, T = 2)
    z_BLV = draw(0, 2.0)
    for tail in ("bucket", "none"):
        got_BL, got_BLV = both(TopKDivergence(divergence(temperature=temperature), tail), z_BLV, top_of(z_BLV, K))
        # every log is off by some u of its size, divided by the mass of the tail for the bucket
        assert np.all(np.abs(got_BL) <= temperature**2 * 400 * U)
        if tail == "bucket" and divergence is not TotalVariation:  # it has a kink there
            assert np.all(np.abs(got_BLV) <= temperature**2 * 400 * U)


def test_renormalising_costs_minus_log_of_the_kept_mass_where_student_and_teacher_agree(draw, top_of):
    # what DistillKit's missing="zero" reports as a loss
    z_BLV = draw(0, 2.0)
    *_, a, _ = probabilities(z_BLV, z_BLV)
    got_BL = TopKDivergence(tail="renormalised")(z_BLV, top_of(z_BLV, K))
    np.testing.assert_allclose(got_BL, -np.log(a[..., 0]), rtol=0, atol=100 * U)


@pytest.mark.parametrize("divergence", [ForwardKL(), JensenShannon(0.3)])
def test_with_a_bucket_it_is_at_least_zero_and_at_most_the_full_divergence(draw, teach, top_of, both, divergence):
    z_BLV, z_teacher_BLV = draw(0), draw(1)
    full_BL = divergence(z_BLV, teach(z_teacher_BLV))
    before_BL = np.zeros((2, 3))
    for k in (1, 8, V - 1):
        got_BL, _ = both(TopKDivergence(divergence), z_BLV, top_of(z_teacher_BLV, k))
        assert np.all(got_BL >= before_BL - 1e-5) and np.all(got_BL <= full_BL + 1e-5)
        before_BL = got_BL
    np.testing.assert_allclose(before_BL, full_BL, rtol=1e-4, atol=1e-5)  # one token is its own bucket


@pytest.mark.parametrize("tail", ["bucket", "none", "renormalised", "label"])
@pytest.mark.parametrize(
    "divergence", [ForwardKL(), ReverseKL(), JensenShannon(0.3), TotalVariation(), NegativeLogAcceptance()]
)
def test_with_every_token_kept_it_is_the_full_divergence_without_a_phantom_tail(
    draw, teach, top_of, both, divergence, tail
):
    z_BLV, z_teacher_BLV = draw(0), draw(1)
    loss, target = TopKDivergence(divergence, tail), top_of(z_teacher_BLV, V, LABEL)
    phantom = FLOOR * np.log(1 / FLOOR) if tail == "bucket" else 0
    got_BL, got_BLV = both(loss, z_BLV, target)
    expected_BL, expected_BLV = both(divergence, z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(got_BL, expected_BL, rtol=1e-5, atol=phantom + 100 * U)
    np.testing.assert_allclose(got_BLV, expected_BLV, rtol=0, atol=phantom + 200 * U)


def test_with_no_token_kept_the_naive_fix_is_cross_entropy_and_the_others_are_nothing(draw, both):
    z_BLV, nothing = draw(0), np.full((2, 3, 2), NO_ID)
    target = TopK(jnp.asarray(LABEL), jnp.asarray(nothing), jnp.full((2, 3, 2), -1e30), jnp.zeros((2, 3)))
    got_BL, got_BLV = both(TopKDivergence(tail="label"), z_BLV, target)
    expected_BL, expected_BLV = both(CrossEntropy(), z_BLV, Labels(jnp.asarray(LABEL)))
    np.testing.assert_allclose(got_BL, expected_BL, rtol=8 * U)
    np.testing.assert_allclose(got_BLV, expected_BLV, atol=16 * U)
    for tail in ("bucket", "none"):
        got_BL, got_BLV = both(TopKDivergence(tail=tail), z_BLV, target)
        assert not got_BL.any() and not got_BLV.any()


@pytest.mark.parametrize(
    ("divergence", "tail"),
    [
        (ForwardKL(), "label"),
        (ReverseKL(2.0), "bucket"),
        (JensenShannon(0.3), "none"),
        (TotalVariation(), "renormalised"),
    ],
)
def test_entries_that_hold_nothing_change_nothing(draw, top_of, both, divergence, tail):
    z_BLV, target = draw(0), top_of(draw(1), K, LABEL)
    wide = [
        jnp.pad(x, ((0, 0), (0, 0), (0, 3)), constant_values=fill)
        for x, fill in ((target.id_BLS, NO_ID), (target.logp_BLS, -1e30))
    ]
    wider = TopK(target.label_BL, *wide, target.logtail_BL)
    loss = TopKDivergence(divergence, tail)
    for got, expected in zip(both(loss, z_BLV, wider), both(loss, z_BLV, target), strict=True):
        np.testing.assert_allclose(got, expected, rtol=16 * U, atol=64 * U)


def test_a_negative_truncated_divergence_keeps_its_both(draw, top_of, both):
    # clamping it at 0 took the gradient of most steps away in verl
    z_teacher_BLV = draw(1)
    z_BLV = np.where(np.argsort(np.argsort(-z_teacher_BLV, axis=-1), axis=-1) < K, z_teacher_BLV + 2, z_teacher_BLV)
    loss, target = TopKDivergence(tail="none"), top_of(z_teacher_BLV, K)
    got_BL, got_BLV = both(loss, z_BLV, target)
    assert np.all(got_BL < -0.1)
    p, q, _, a, _ = probabilities(z_BLV, z_teacher_BLV)
    np.testing.assert_allclose(got_BLV, a * q - p, atol=64 * U)


def test_a_student_that_has_lost_its_tail_is_pushed_to_give_it_back(draw, top_of, both):
    z_teacher_BLV = draw(1, 0.5)
    kept = np.argsort(np.argsort(-z_teacher_BLV, axis=-1), axis=-1) < K
    z_BLV = np.where(kept, z_teacher_BLV + 40, z_teacher_BLV).astype(np.float32)  # 1 - b is 1e-17
    loss, target = TopKDivergence(), top_of(z_teacher_BLV, K)
    got_BL, got_BLV = both(loss, z_BLV, target)
    assert np.all(np.isfinite(got_BL)) and np.all(got_BL > 5)
    assert np.all(np.isfinite(got_BLV)) and np.all(got_BLV[~kept] < 0)


def test_the_naive_fix_is_biased_as_derived_and_right_when_everything_is_kept(draw, top_of):
    # E over labels from p: (2 - a) p on the kept tokens, (1 - a) p elsewhere
    z_teacher_BLV = draw(1)[:1, :1]
    p = special.softmax(np.float64(z_teacher_BLV), axis=-1)[0, 0]
    mean = np.zeros(V)
    loss = TopKDivergence(tail="label")
    for y in range(V):
        target = loss._known(top_of(z_teacher_BLV, K, np.full((1, 1), y)))
        for v, logp in zip(np.asarray(target.id_BLS[0, 0]), np.asarray(target.logp_BLS[0, 0]), strict=True):
            if v != NO_ID:
                mean[v] += p[y] * np.exp(logp)
    kept, a = np.argsort(-p)[:K], np.sort(p)[-K:].sum()
    expected = (1 - a) * p
    expected[kept] = (2 - a) * p[kept]
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_a_uniform_tail_spreads_what_is_left_over_the_entire_vocabulary(draw, top_of, gradient):
    z_BLV, z_teacher_BLV = draw(0), draw(1)
    p, q, _, a, _ = probabilities(z_BLV, z_teacher_BLV)
    target = UniformTail()(top_of(z_teacher_BLV, K), {})
    expected = p + (1 - a) / V
    np.testing.assert_allclose(special.softmax(np.float64(target.logits(jnp.asarray(z_BLV))), -1), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient(ForwardKL(), z_BLV, target), q - expected, atol=64 * U)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopKDivergence(tail="uniform"), "a uniform tail needs all logits: use"),
        (lambda: TopKDivergence(tail="zero"), "there is no tail 'zero'"),
        (lambda: TopKDivergence(ForwardKL(2.0), "label"), "set the temperature to 1"),
        (lambda: TopKDivergence().ids(Labels(jnp.zeros((1, 1)))), "needs a teacher's top K tokens, not Labels"),
        (
            lambda: UniformTail()(Labels(jnp.zeros((1, 1))), {}),
            "UniformTail fills up a TopK target, and Labels is none",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(make, message):
    with pytest.raises(InputError, match=message):
        make()
