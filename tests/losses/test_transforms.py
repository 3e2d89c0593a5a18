"""Targets made of targets: each is the distribution it says, without a gradient, on any shard of the vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.labels import MixLabel, PromoteLabel
from jaxdistill.losses.ranks import kth_largest
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.targets import Dense, Labels
from jaxdistill.losses.transforms import Average, Chain, Extrapolate, Interpolate, L1Gap, Noise, SetUniform, Temper
from jaxdistill.losses.truncate import Clip, Truncate
from jaxdistill.losses.vocabulary import WHOLE, Vocabulary

U, V = 2.0**-24, 33
LABEL = np.arange(6).reshape(2, 3)
HOT = np.eye(V)[LABEL]
INDEX = {"index_BL": jnp.arange(6).reshape(2, 3)}


def softmax(z):
    return special.softmax(np.float64(z), axis=-1)


def distribution(target, z_BLV):
    return softmax(target.logits(jnp.asarray(z_BLV)))


def test_temper_is_a_temperature_of_the_teacher_alone_or_of_each_token(draw, teach):
    z_BLV, z_teacher_BLV = draw(0), draw(1)
    got = distribution(Temper(3.0)(teach(z_teacher_BLV), {}), z_BLV)
    np.testing.assert_allclose(got, softmax(z_teacher_BLV / 3), atol=8 * U)
    t_BL = jnp.asarray([[1.0, 2.0, 1e9], [0.5, 1.0, 4.0]])
    got = distribution(Temper("t_BL")(teach(z_teacher_BLV), {"t_BL": t_BL}), z_BLV)
    np.testing.assert_allclose(got, softmax(z_teacher_BLV / np.asarray(t_BL)[..., None]), atol=8 * U)
    np.testing.assert_allclose(got[0, 2], 1 / V, atol=8 * U)  # endless temperature: uniform


def test_interpolation_goes_from_the_student_where_nothing_is_lost_to_the_teacher(draw, teach, both):
    z_BLV, z_teacher_BLV = draw(0, 2.0), draw(1, 2.0)
    target = teach(z_teacher_BLV)
    value_BL, slope_BLV = both(ForwardKL(), z_BLV, Interpolate(0.0)(target, {}))
    assert not value_BL.any() and np.all(np.abs(slope_BLV) <= 8 * U)
    for got, expected in zip(
        both(ForwardKL(), z_BLV, Interpolate("t")(target, {"t": 1.0})), both(ForwardKL(), z_BLV, target), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=16 * U, atol=16 * U)
    p, q = softmax(z_teacher_BLV), softmax(z_BLV)
    mean = p**0.3 * q**0.7
    mean /= mean.sum(-1, keepdims=True)  # the normalised geometric mean
    np.testing.assert_allclose(distribution(Interpolate(0.3)(target, {}), z_BLV), mean, atol=16 * U)
    _, slope_BLV = both(ForwardKL(), z_BLV, Interpolate(0.3)(target, {}))
    np.testing.assert_allclose(slope_BLV, q - mean, atol=16 * U)  # so none passes through the target


def test_the_mean_of_logits_is_a_geometric_mean_and_the_mean_of_probabilities_another_target(draw, teach):
    zs = [draw(seed, 2.0) for seed in (1, 2, 3)]
    target, p = teach(zs[0], a=zs[1], b=zs[2]), [softmax(z) for z in zs]
    geometric = np.prod(p, axis=0) ** (1 / 3)
    geometric /= geometric.sum(-1, keepdims=True)
    got = distribution(Average(("a", "b"), of="logit")(target, {}), draw(0))
    np.testing.assert_allclose(got, geometric, atol=16 * U)
    arithmetic = distribution(Average(("a", "b"))(target, {}), draw(0))
    np.testing.assert_allclose(arithmetic, np.mean(p, axis=0), atol=16 * U)
    assert np.abs(geometric - arithmetic).max() > 0.05


@pytest.mark.parametrize("of", ["logit", "probability"])
def test_equal_teachers_average_to_themselves(draw, teach, of):
    z = draw(1, 2.0)
    got = distribution(Average(("a",), of)(teach(z, a=z), {}), draw(0))
    np.testing.assert_allclose(got, softmax(z), atol=8 * U)


def test_extrapolation_composes_logits_and_its_ends_are_the_models(draw, teach):
    z, base, tuned = (draw(seed, 2.0) for seed in (1, 2, 3))
    target = teach(z, base=base, tuned=tuned)
    got = distribution(Extrapolate("base", toward="tuned", weight=0.5)(target, {}), draw(0))
    np.testing.assert_allclose(got, softmax(z + 0.5 * (tuned - base)), atol=32 * U)
    got = distribution(Extrapolate("base", toward="tuned", weight=0.0)(target, {}), draw(0))
    np.testing.assert_allclose(got, softmax(z), atol=8 * U)
    same = teach(z, base=z, tuned=tuned)  # a base of the large model's size and kind
    got = distribution(Extrapolate("base", toward="tuned", weight="a")(same, {"a": 1.0}), draw(0))
    np.testing.assert_allclose(got, softmax(tuned), atol=32 * U)


def test_a_gap_between_two_models_sets_how_far_each_token_is_moved(draw, teach):
    z, away = draw(1), draw(2)
    w = 10 * np.abs(softmax(z) - softmax(away)).sum(-1, keepdims=True) + 1e-3
    got = distribution(Extrapolate("away", weight=L1Gap(10.0))(teach(z, away=away), {}), draw(0))
    np.testing.assert_allclose(got, softmax(z + w * (z - away)), atol=256 * U)  # logits of some 40 are rounded


def test_reward_with_a_kl_penalty_is_reverse_kl_to_the_extrapolated_model(draw, teach, gradient):
    # AlignDistil, theorem 1: grad of -(E_q[beta log p_dpo/p_ref] - beta2 KL(q || p_ref)) = grad of beta2 RKL to the mix
    z_BLV, dpo, ref, beta, beta2 = draw(0), draw(1), draw(2), 0.3, 0.2

    def reward(z_BLV):
        log_q, log_dpo, log_ref = (jax.nn.log_softmax(x) for x in (z_BLV, dpo, ref))
        return -jnp.sum(jnp.exp(log_q) * (beta * (log_dpo - log_ref) - beta2 * (log_q - log_ref)))

    mix = Extrapolate("ref", weight=beta / beta2 - 1)(teach(dpo, ref=ref), {})
    expected_BLV = jax.grad(reward)(jnp.asarray(z_BLV))
    np.testing.assert_allclose(beta2 * gradient(ReverseKL(), z_BLV, mix), expected_BLV, atol=64 * U)


def test_a_uniform_label_keeps_the_ratios_of_the_others_and_leaves_a_uniform_one_alone(draw, both):
    z_BLV, labels = draw(0, 2.0), Labels(jnp.asarray(LABEL))
    got, q = distribution(SetUniform()(labels, {}), z_BLV), softmax(z_BLV)
    np.testing.assert_allclose((got * HOT).sum(-1), 1 / V, atol=4 * U)
    expected = np.where(HOT > 0, 0, q)
    expected *= (1 - 1 / V) / expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.where(HOT > 0, 0, got), expected, atol=8 * U)
    value_BL, slope_BLV = both(ReverseKL(), np.log(got).astype(np.float32), SetUniform()(labels, {}))
    np.testing.assert_allclose(value_BL, 0, atol=32 * U)
    np.testing.assert_allclose(slope_BLV, 0, atol=32 * U)


def test_noise_depends_on_the_token_and_not_on_its_place_in_the_batch(draw, teach):
    z = draw(1)
    noisy = Noise(0.5)(teach(z), INDEX).logits(jnp.asarray(draw(0)))
    moved = Noise(0.5)(teach(z[::-1].copy()), {"index_BL": INDEX["index_BL"][::-1]}).logits(jnp.asarray(draw(0)))
    np.testing.assert_array_equal(noisy[::-1], moved)
    noise = np.asarray(noisy - z) / 0.5
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size) and abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    np.testing.assert_array_equal(Noise(0.0)(teach(z), INDEX).logits(jnp.asarray(draw(0))), z)
    assert np.any(Noise(0.5, seed=1)(teach(z), INDEX).logits(jnp.asarray(draw(0))) != noisy)


def test_a_chain_applies_its_first_transform_first_and_passes_the_references_on(draw, teach):
    z, other = draw(1), draw(2)
    target = teach(z, LABEL, other=other)
    got = distribution(Chain((Average(("other",), "logit"), Temper(2.0), MixLabel(0.5)))(target, {}), draw(0))
    np.testing.assert_allclose(got, 0.5 * HOT + 0.5 * softmax((z + other) / 4), atol=16 * U)
    swapped = distribution(Chain((Temper(2.0), Average(("other",), "logit")))(target, {}), draw(0))
    np.testing.assert_allclose(swapped, softmax((z / 2 + other) / 2), atol=16 * U)


@pytest.mark.parametrize(
    ("rule", "amount", "kept"),
    [
        ("top_k", 4, lambda p, before: np.argsort(np.argsort(-p)) < 4),
        ("top_k", 100, lambda p, before: p > 0),
        ("top_p", 0.6, lambda p, before: before < 0.6),
        ("top_p", 1.0, lambda p, before: p > 0),
        ("min_p", 0.2, lambda p, before: p >= 0.2 * p.max(-1, keepdims=True)),
    ],
)
def test_truncation_keeps_what_the_rule_says_and_shares_out_the_rest_as_asked(draw, teach, rule, amount, kept):
    z = draw(1, 2.0)
    p = softmax(z)
    rank = np.argsort(np.argsort(-p))
    before = np.take_along_axis(np.cumsum(-np.sort(-p), -1) + np.sort(-p), rank, -1)
    keeps = kept(p, before)
    dropped = distribution(Truncate(rule, amount)(teach(z, padding=5), {}), draw(0))
    np.testing.assert_allclose(dropped, p * keeps / (p * keeps).sum(-1, keepdims=True), atol=16 * U)
    spread = distribution(Truncate(rule, amount, "uniform")(teach(z, padding=5), {}), draw(0))
    each = (p * ~keeps).sum(-1, keepdims=True) / np.maximum((~keeps).sum(-1, keepdims=True), 1)
    np.testing.assert_allclose(spread, np.where(keeps, p, each), atol=16 * U)


@pytest.mark.parametrize("k", [1, 2, 7, 200, 512, 1000])
def test_the_kth_largest_is_that_of_sorting(k):
    rng = np.random.default_rng(0)
    z_BLV = (rng.standard_normal((3, 5, 512)) * 10.0 ** rng.integers(-40, 38, (3, 5, 512))).astype(np.float32)
    z_BLV[0, :, ::3], z_BLV[1, 0], z_BLV[1, 1, :300], z_BLV[2, 0, :4] = z_BLV[0, :, :1], 0.0, -1e30, -np.inf
    expected_BL = np.sort(z_BLV, axis=-1)[..., -min(k, 512)]
    np.testing.assert_array_equal(kth_largest(jnp.asarray(z_BLV), k, WHOLE), expected_BL)


def test_a_band_of_mass_keeps_the_tokens_in_it_and_the_label(draw, teach, gradient):
    z = draw(1, 2.0)
    p = softmax(z)
    before = np.take_along_axis(np.cumsum(-np.sort(-p), -1) + np.sort(-p), np.argsort(np.argsort(-p)), -1)
    keeps = ((before >= 0.3) & (before < 0.9)) | (HOT > 0)
    got = distribution(Clip(0.3, 0.9)(teach(z, LABEL), {}), draw(0))
    np.testing.assert_allclose(got, p * keeps / (p * keeps).sum(-1, keepdims=True), atol=16 * U)
    np.testing.assert_allclose(distribution(Clip()(teach(z, LABEL), {}), draw(0)), p, atol=8 * U)


SHARDABLE = [
    Temper(2.0), Interpolate(0.3), MixLabel(0.4), PromoteLabel(), Average(("other",)), Average(("other",), "logit"),
    Extrapolate("other", weight=L1Gap(2.0)), SetUniform(), Truncate("min_p", 0.1, "uniform"), Truncate("top_k", 3),
]  # fmt: skip
SORTING = [Truncate("top_p", 0.5), Clip(0.1, 0.5), Noise(0.1)]


def on_shards(transform, target, z_BLV, number=4):
    """The target's logits with the vocabulary cut into shards, which talk to each other over a named axis."""
    columns = z_BLV.shape[-1] // number

    def shard(z_BLV, heads, first):
        heads = dict(zip(("", *target.references), heads, strict=True))
        return transform(Dense(target.label_BL, heads.pop(""), heads), INDEX).logits(
            z_BLV, Vocabulary(first, ("shards",))
        )

    def cut(head):
        w_VD = head.w_VD.reshape(number, columns, -1)
        return dataclasses.replace(head, h_BLD=jnp.broadcast_to(head.h_BLD, (number, *head.h_BLD.shape)), w_VD=w_VD)

    heads = [cut(head) for head in (target.head, *target.references.values())]
    parts = jnp.moveaxis(jnp.asarray(z_BLV).reshape(2, 3, number, columns), 2, 0)
    out = jax.vmap(shard, axis_name="shards")(parts, heads, jnp.arange(number) * columns)
    return jnp.moveaxis(out, 0, 2).reshape(2, 3, -1)


@pytest.mark.parametrize("transform", SHARDABLE, ids=str)
def test_on_a_sharded_vocabulary_the_target_is_the_same(draw, teach, transform):
    z_BLV, target = draw(0, 2.0, 32), teach(draw(1, 2.0, 32), LABEL, other=draw(2, 2.0, 32))
    expected = distribution(transform(target, {}), z_BLV)
    np.testing.assert_allclose(softmax(on_shards(transform, target, z_BLV)), expected, atol=16 * U)


@pytest.mark.parametrize("transform", SORTING, ids=str)
def test_what_needs_all_logits_of_a_token_refuses_a_sharded_vocabulary(draw, teach, transform):
    with pytest.raises(InputError, match=r"needs all logits of a token at once, .* set mesh.shards to 1"):
        on_shards(transform, teach(draw(1, 2.0, 32), LABEL), draw(0, 2.0, 32))


@pytest.mark.parametrize("transform", [Interpolate(0.3), SetUniform()], ids=str)
def test_a_target_that_looks_at_the_student_passes_no_gradient_to_any_loss(draw, teach, transform):
    target = transform(teach(draw(1), LABEL), {})
    slope_BLV = jax.grad(lambda z_BLV: jnp.sum(target.logits(z_BLV) ** 2))(jnp.asarray(draw(0)))
    assert not np.any(slope_BLV)


@pytest.mark.parametrize("transform", [*SHARDABLE, *SORTING], ids=str)
def test_padding_on_either_side_stays_outside_and_everything_stays_finite(draw, teach, both, transform):
    z_BLV, teacher, other = draw(0, 20.0), draw(1, 20.0), draw(2, 20.0)
    wide_BLV = np.pad(z_BLV, ((0, 0), (0, 0), (0, 7)), constant_values=-1e30)
    target = transform(teach(teacher, LABEL, padding=3, other=other), INDEX)
    got = target.logits(jnp.asarray(wide_BLV))
    assert np.all(np.isfinite(got)) and np.all(softmax(got)[..., V:] == 0)
    expected = distribution(transform(teach(teacher, LABEL, other=other), INDEX), z_BLV)
    if not isinstance(transform, Noise):  # whose draws may depend on how many there are
        np.testing.assert_allclose(softmax(got)[..., :V], expected, atol=1e-4)  # logits of 400 after L1Gap
    value_BL, slope_BLV = both(ForwardKL(0.05), wide_BLV, target)
    assert np.all(np.isfinite(value_BL)) and np.all(np.isfinite(slope_BLV)) and not slope_BLV[..., V:].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: Temper(0.0), "Temper.temperature is 0.0; it must be above 0"),
        (lambda t: Interpolate(1.5), "Interpolate.t is 1.5; it must lie from 0 to 1"),
        (lambda t: MixLabel(-0.1), "MixLabel.weight is -0.1; it must lie from 0 to 1"),
        (lambda t: Average(("other",), of="median"), "Average.of is 'median'"),
        (lambda t: Truncate("top_p", 1.5), "Truncate.amount is 1.5; for top_p it must be above 0 and at most 1"),
        (lambda t: Truncate("top_k", 1.5), "for top_k it must be a whole number from 1"),
        (lambda t: Truncate("best", 1), "Truncate has no rule 'best'"),
        (lambda t: Clip(0.5, 0.2), "they must rise within 0 and 1"),
        (lambda t: Interpolate("t")(t, {}), r"no knob 't' \(there are: none\)"),
        (
            lambda t: Average(("other",))(t, {}).logits(jnp.zeros((2, 3, V))),
            r"no reference model 'other' .* \(there are: none\)",
        ),
        (lambda t: Temper(2.0)(Labels(t.label_BL), {}), "needs a teacher's whole distribution, not Labels"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(draw, teach, make, message):
    with pytest.raises(InputError, match=message):
        make(teach(draw(1)))
