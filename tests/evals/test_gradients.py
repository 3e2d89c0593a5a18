"""Gradients compared, against the closed form of a bigram model: dL/dW = sum_t (q_t - p_t) h_t^T / tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.data.windows import Batch
from jaxdistill.errors import InputError
from jaxdistill.evals.gradients import compare, make_gradient
from jaxdistill.head import Head
from jaxdistill.losses import methods
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.hidden import Layers
from jaxdistill.losses.objective import Term
from jaxdistill.losses.states import CosineDistance
from jaxdistill.teacher import TEACHER, Draws, Top

V, D, B, L = 24, 8, 4, 12
CE, KL = {"ce": Term(CrossEntropy())}, {"kl": Term(ForwardKL())}


@dataclasses.dataclass(frozen=True)
class Bigram:
    """Logits h_t W^T, where h_t is the fixed random embedding of the token: what is learnt is W alone."""

    def hidden(self, params, tokens_BL, segment_BL=None, position_BL=None, *, keep=()):
        return jnp.asarray(EMBED_VD, jnp.float32)[tokens_BL], {}

    def head(self, params, h_BLD):
        return Head(h_BLD, params["w_VD"], vocab_size=V)


EMBED_VD = np.random.default_rng(5).normal(size=(V, D))
MODEL, TEACHERS = Bigram(), {TEACHER: Bigram()}


def weights(seed):
    return {"w_VD": np.random.default_rng(seed).normal(size=(V, D)).astype(np.float32)}


STUDENT, FROZEN = weights(0), {TEACHER: weights(1)}


@pytest.fixture(scope="module")
def batches():
    def batch(seed):
        draw = np.random.default_rng(seed)
        tokens = draw.integers(V, size=(B, L + 1)).astype(np.int32)
        ones = np.ones((B, L), np.int32)
        weight_BL = (draw.random((B, L)) < 0.8).astype(np.float32)
        return Batch(tokens[:, :-1], tokens[:, 1:], weight_BL, ones, ones)

    return [batch(seed) for seed in (10, 11, 12)]


def bound(terms, keep=None):
    gradient = jax.jit(make_gradient(MODEL, terms, TEACHERS, keep))
    return lambda batch, key: gradient(STUDENT, FROZEN, batch, key)


def closed_form(batch, target):
    """The mean of (q - p) h^T over the tokens that count, float64."""
    h_BLD = EMBED_VD.astype(np.float32).astype(np.float64)[batch.tokens_BL]
    q_BLV, p_BLV = (special.softmax(h_BLD @ np.float64(w["w_VD"]).T, axis=-1) for w in (STUDENT, FROZEN[TEACHER]))
    p_BLV = np.eye(V)[batch.label_BL] if target == "label" else p_BLV
    weighed = batch.weight_BL[..., None] * (q_BLV - p_BLV)
    return np.einsum("blv,bld->vd", weighed, h_BLD) / batch.weight_BL.sum()


def test_angle_and_ratio_are_those_of_the_closed_form(batches):
    ce, kl = (np.mean([closed_form(b, target) for b in batches], axis=0) for target in ("label", "teacher"))
    cosine = np.sum(ce * kl) / np.linalg.norm(ce) / np.linalg.norm(kl)
    found = compare(bound(CE), bound(KL), batches)
    assert found.batches == 3
    # each of V D = 192 numbers is a sum of 48 tokens, whose logits are sums of 8: some 1e-5 of the norm at most
    assert found.angle == pytest.approx(np.degrees(np.arccos(cosine)), abs=np.degrees(1e-5))
    assert found.ratio == pytest.approx(np.linalg.norm(ce) / np.linalg.norm(kl), rel=1e-5)
    assert 10 < found.angle < 80


def test_an_objective_has_the_gradient_of_itself(batches):
    found = compare(bound(KL), bound(KL), batches)
    assert (found.angle, found.ratio) == (0, 1)


@pytest.mark.parametrize(("coef", "angle"), [(2.0, 0), (-0.5, 180)])
def test_a_coefficient_changes_size_and_sign_alone(batches, coef, angle):
    found = compare(bound({"kl": Term(ForwardKL(), coef=coef)}), bound(KL), batches)
    assert found.angle == pytest.approx(angle, abs=1e-5)  # powers of two: equal to the last bit, but for the root
    assert found.ratio == pytest.approx(abs(coef), rel=1e-6)


def test_the_angle_of_random_draws_falls_with_their_number_and_that_of_the_top_ids_does_not(batches):
    draws, top, whole = bound(methods.random_sampling_kd(), Draws(3)), bound(methods.top_k("none"), Top(3)), bound(KL)
    few, many = (compare(draws, whole, batches[:1] * redraws) for redraws in (4, 256))
    # 1 / sqrt(R): 8 times smaller in expectation; an angle is the length of some hundred independent errors
    assert 6 < few.angle / many.angle < 11
    assert many.ratio == pytest.approx(1, abs=0.05)
    biased = [compare(top, whole, batches[:1] * redraws).angle for redraws in (1, 16)]
    assert biased[0] == pytest.approx(biased[1], rel=1e-4)
    assert biased[0] > 3 * many.angle


def test_what_has_no_comparison_is_refused(batches):
    with pytest.raises(InputError, match="no batches"):
        compare(bound(CE), bound(KL), [])
    zero = {"kl": Term(ForwardKL(), coef=0.0)}
    with pytest.raises(InputError, match="zero and has no direction"):
        compare(bound(zero), bound(KL), batches)
    with pytest.raises(InputError, match="states compares hidden states"):
        make_gradient(MODEL, {"states": Term(Layers(((0, 0),), CosineDistance()))}, TEACHERS)
    with pytest.raises(InputError, match="kl takes its coefficient from a controller"):
        make_gradient(MODEL, {"kl": Term(ForwardKL(), coef="controller")}, TEACHERS)
