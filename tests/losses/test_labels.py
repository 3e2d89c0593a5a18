"""Labels mixed into targets: the identity with a sum of losses, for every kind of target."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.labels import MixLabel, PromoteLabel
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.sampled import SampledCrossEntropy
from jaxdistill.losses.targets import NO_ID, Labels, Sampled
from jaxdistill.losses.top_k import TopKDivergence

U, V = 2.0**-24, 33
LABEL = np.arange(6).reshape(2, 3)
HOT = np.eye(V)[LABEL]
LABELS = Labels(jnp.asarray(LABEL))


def distribution(target, z_BLV):
    return special.softmax(np.float64(target.logits(jnp.asarray(z_BLV))), axis=-1)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_forward_kl_to_a_mixed_target_has_the_gradient_of_the_mixed_losses(draw, teach, gradient, weight):
    z_BLV, target = draw(0, 2.0), teach(draw(1, 2.0), LABEL)
    mixed = MixLabel(weight)(target, {})
    expected_BLV = weight * gradient(CrossEntropy(), z_BLV, target) + (1 - weight) * gradient(
        ForwardKL(), z_BLV, target
    )
    np.testing.assert_allclose(gradient(ForwardKL(), z_BLV, mixed), expected_BLV, rtol=0, atol=64 * U)


def test_for_reverse_kl_that_is_not_so(draw, teach, gradient):
    z_BLV, target = draw(0, 2.0), teach(draw(1, 2.0), LABEL)
    terms = 0.3 * gradient(CrossEntropy(), z_BLV, target) + 0.7 * gradient(ReverseKL(), z_BLV, target)
    assert np.abs(gradient(ReverseKL(), z_BLV, MixLabel(0.3)(target, {})) - terms).max() > 0.05


def test_a_weight_may_be_a_knob_and_one_of_each_token(draw, teach):
    z_BLV, z_teacher_BLV = draw(0), draw(1)
    target, weight_BL = teach(z_teacher_BLV, LABEL), np.linspace(0, 1, 6).reshape(2, 3).astype(np.float32)
    p = special.softmax(np.float64(z_teacher_BLV), -1)
    got = distribution(MixLabel("mix_BL")(target, {"mix_BL": jnp.asarray(weight_BL)}), z_BLV)
    expected = weight_BL[..., None] * HOT + (1 - weight_BL[..., None]) * p
    np.testing.assert_allclose(got, expected, atol=16 * U)
    got = distribution(MixLabel("mix")(target, {"mix": jnp.float32(0.25)}), z_BLV)
    np.testing.assert_allclose(got, 0.25 * HOT + 0.75 * p, atol=16 * U)
    with pytest.raises(InputError, match=r"no knob 'mix' \(there are: 'kl'\)"):
        MixLabel("mix")(target, {"kl": 1.0})


@pytest.mark.parametrize("weight", ["mix", "mix_BL"])
def test_a_truncated_target_takes_the_label_too_whether_it_is_kept_or_not(draw, top_of, gradient, weight):
    z_BLV, z_teacher_BLV, label_BL = draw(0, 2.0), draw(1, 2.0), LABEL.copy()
    label_BL[0] = z_teacher_BLV[0].argmax(-1)
    target, labels = top_of(z_teacher_BLV, 5, label_BL), Labels(jnp.asarray(label_BL))
    is_kept = np.any(np.asarray(target.id_BLS) == label_BL[..., None], axis=-1)
    assert is_kept.any() and not is_kept.all()
    loss, knobs = TopKDivergence(tail="none"), {"mix": 0.3, "mix_BL": jnp.full((2, 3), 0.3)}
    expected_BLV = 0.3 * gradient(CrossEntropy(), z_BLV, labels) + 0.7 * gradient(loss, z_BLV, target)
    got_BLV = gradient(loss, z_BLV, MixLabel(weight)(target, knobs))
    np.testing.assert_allclose(got_BLV, expected_BLV, rtol=0, atol=64 * U)


@pytest.mark.parametrize("weight", ["mix", "mix_BL"])
def test_and_so_does_a_sampled_one(draw, gradient, weight):
    rng, knobs = np.random.default_rng(3), {"mix": 0.3, "mix_BL": jnp.full((2, 3), 0.3)}
    id_BLS = np.stack([rng.permutation(V)[:4] for _ in range(6)]).reshape(2, 3, 4)
    id_BLS[..., 3] = NO_ID
    weight_BLS = np.float32(rng.dirichlet(np.ones(4), size=(2, 3))) * (id_BLS != NO_ID)
    z_BLV, target = draw(0), Sampled(LABELS.label_BL, jnp.asarray(id_BLS), jnp.asarray(weight_BLS))
    loss = SampledCrossEntropy()
    expected_BLV = 0.3 * gradient(CrossEntropy(), z_BLV, LABELS) + 0.7 * gradient(loss, z_BLV, target)
    got_BLV = gradient(loss, z_BLV, MixLabel(weight)(target, knobs))
    np.testing.assert_allclose(got_BLV, expected_BLV, rtol=0, atol=32 * U)


def test_mixing_round_after_round_converges_to_the_label_where_a_model_is_its_own_teacher(draw, teach):
    # p <- a y + (1 - a) p: 1 - p_y falls by 1 - a each round
    z_BLV = draw(1)
    left_BL = 1 - (special.softmax(np.float64(z_BLV), -1) * HOT).sum(-1)
    for round in range(1, 4):
        p = distribution(MixLabel(0.4)(teach(z_BLV, LABEL), {}), z_BLV)
        np.testing.assert_allclose(1 - (p * HOT).sum(-1), 0.6**round * left_BL, rtol=1e-5)
        z_BLV = np.log(p).astype(np.float32)


def test_a_promoted_label_leads_by_the_margin_and_others_keep_their_ratios(draw, teach):
    z_teacher_BLV = draw(1, 2.0)
    z_teacher_BLV[0, 0, LABEL[0, 0]] = 9  # the label leads here, and almost has all the mass
    z_teacher_BLV[0, 1, LABEL[0, 1]] = z_teacher_BLV[0, 1].max() + 0.1  # and here by little
    before = special.softmax(np.float64(z_teacher_BLV), -1)
    after = distribution(PromoteLabel(0.2)(teach(z_teacher_BLV, LABEL), {}), draw(0))
    label, other = ((x * HOT).sum(-1) for x in (after, before))
    lead_BL = label - np.where(HOT > 0, 0, after).max(-1)
    leads_BL = before.argmax(-1) == LABEL
    assert leads_BL.sum() == 2
    np.testing.assert_allclose(lead_BL[~leads_BL], 0.2, atol=16 * U)
    np.testing.assert_allclose(label[leads_BL], np.minimum(other + 0.2, 1)[leads_BL], atol=16 * U)
    after, before = (x[label < 1] * (1 - HOT[label < 1]) for x in (after, before))
    ratio = after.sum(-1, keepdims=True) / before.sum(-1, keepdims=True)
    np.testing.assert_allclose(after, ratio * before, atol=64 * U)


def test_a_margin_that_cannot_be_met_is_refused():
    with pytest.raises(InputError, match=r"PromoteLabel.margin is 1.0; it must be above 0 and below 1"):
        PromoteLabel(1.0)
