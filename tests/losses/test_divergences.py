"""What holds for every divergence: zero at agreement, shifts, padding, temperatures, and the streamed forms.

Each of the last has been wrong somewhere: values without the gradient's T^2, padded columns that count, raw logits of
one model in the padding of the other, differences of bfloat16 sums, losses that are not finite for large vocabularies.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.head import Head
from jaxdistill.losses.adaptive_kl import AdaptiveKL
from jaxdistill.losses.decoupled_kd import DecoupledKD
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.jensen_shannon import JensenShannon
from jaxdistill.losses.linear_heads import weighted_sum
from jaxdistill.losses.linear_heads.divergence import chunked
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.skew import DifficultySkew, SkewForwardKL, SkewReverseKL
from jaxdistill.losses.targets import Dense
from jaxdistill.losses.total_variation import NegativeLogAcceptance, TotalVariation
from jaxdistill.losses.vocabulary import Vocabulary

U, V = 2.0**-24, 33
LABEL = np.arange(6).reshape(2, 3)
SMOOTH = [
    ForwardKL(), ReverseKL(), JensenShannon(0.3), JensenShannon(0.01, "forward"), SkewForwardKL(), SkewReverseKL(),
    DifficultySkew(0.5, threshold=0.5), AdaptiveKL(), DecoupledKD(),
]  # fmt: skip
ALL = [*SMOOTH, TotalVariation(), NegativeLogAcceptance()]
WITHOUT_NUMBERS = [
    ForwardKL(), ReverseKL(2.0), JensenShannon(0.3), SkewForwardKL(temperature=2.0), SkewReverseKL(), TotalVariation(),
]  # fmt: skip


def at(divergence, temperature):
    return dataclasses.replace(divergence, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_where_student_and_teacher_agree_it_is_zero_and_flat(draw, teach, both, divergence, temperature):
    z_BLV = draw(0, 3.0)
    value_BL, slope_BLV = both(at(divergence, temperature), z_BLV, teach(z_BLV, LABEL))
    largest = np.abs(z_BLV).max() / temperature  # the logarithms, and so their roundings
    slack = temperature**2 * U * (8 + 2 * largest)
    assert np.all(np.abs(value_BL) <= slack)
    if divergence in SMOOTH:  # the others have a kink there
        assert np.all(np.abs(slope_BLV) <= 4 * slack / temperature)


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_at_a_low_temperature_value_and_gradient_are_finite_however_far_apart_both_are(draw, teach, both, divergence):
    for seed, spread in ((1, 3.0), (2, 30.0)):
        for out in both(at(divergence, 0.05), draw(0, spread), teach(draw(seed, spread), LABEL)):
            assert np.all(np.isfinite(out)) and np.any(out != 0)


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_neither_shifts_nor_padding_of_either_side_change_value_or_gradient(draw, teach, both, divergence):
    z_BLV, z_teacher_BLV = draw(0), draw(1)
    expected_BL, expected_BLV = both(divergence, z_BLV, teach(z_teacher_BLV, LABEL))
    for shift, student_padding, teacher_padding in ((5, 0, 0), (-5, 7, 0), (40, 0, 7), (-40, 3, 7)):
        wide_BLV = np.pad(z_BLV + np.float32(shift), ((0, 0), (0, 0), (0, student_padding)), constant_values=-1e30)
        target = teach(z_teacher_BLV - np.float32(shift), LABEL, padding=teacher_padding)
        value_BL, slope_BLV = both(divergence, wide_BLV, target)
        slack = 16 * U * (8 + abs(shift))  # the shifted logits are rounded
        np.testing.assert_allclose(value_BL, expected_BL, rtol=slack, atol=slack)
        np.testing.assert_allclose(slope_BLV[..., :V], expected_BLV, rtol=0, atol=slack)
        assert not slope_BLV[..., V:].any()


@pytest.mark.parametrize("divergence", [d for d in SMOOTH if not isinstance(d, AdaptiveKL | DifficultySkew)], ids=str)
def test_the_gradient_belongs_to_the_value_that_is_reported_at_any_temperature(draw, teach, both, divergence):
    # Axolotl's fused top-k reported a loss with T^2 and went down one without. (The two left out move with weights that
    # have no gradient.)
    z_BLV, target = draw(0), teach(draw(1), LABEL)
    loss, along_BLV = at(divergence, 2.0), draw(2)
    _, slope_BLV = both(loss, z_BLV, target)
    step = 2.0**-6
    forth, back = (np.float64(both(loss, z_BLV + s * step * along_BLV, target)[0]).sum() for s in (1, -1))
    np.testing.assert_allclose((forth - back) / (2 * step), (slope_BLV * along_BLV).sum(), rtol=1e-3)


@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL], ids=str)
def test_the_factor_of_the_temperature_keeps_the_gradient_of_one_size(draw, teach, both, divergence):
    # T^2 KL -> |z - z_teacher|^2 / (2 V), centred, as T grows: with the factor 1 it would vanish
    z_BLV, z_teacher_BLV = draw(0), draw(1)
    difference = np.float64(z_BLV - z_teacher_BLV)
    difference -= difference.mean(-1, keepdims=True)
    value_BL, slope_BLV = both(divergence(100.0), z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(value_BL, (difference**2).mean(-1) / 2, rtol=0.05)
    np.testing.assert_allclose(slope_BLV, difference / V, atol=0.05 * np.abs(difference).max() / V)


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_no_gradient_passes_to_the_teacher(draw, teach, divergence):
    z_BLV, target = jnp.asarray(draw(0)), teach(draw(1), LABEL)

    def loss(z_BLV):
        same = Dense(target.label_BL, dataclasses.replace(target.head, h_BLD=target.head.h_BLD))
        return divergence(z_BLV, same).sum()

    def seen(z_BLV):  # the target looks at the student's logits, as TAID's does
        looking = dataclasses.replace(target.head, h_BLD=target.head.h_BLD)
        return divergence(z_BLV, Looking(target.label_BL, looking)).sum()

    np.testing.assert_array_equal(jax.grad(seen)(z_BLV), jax.grad(loss)(z_BLV))


@dataclasses.dataclass(frozen=True)
class Looking(Dense):
    """A target that adds nothing of the student's logits: a gradient through it would still be seen."""

    def logits(self, z_BLV, vocabulary=None):
        return super().logits(z_BLV, vocabulary or Vocabulary()) + (z_BLV - jax.lax.stop_gradient(z_BLV))


def streamed_case():
    rng = np.random.default_rng(0)
    B, L, D, size = 2, 5, 8, 2049

    def head(width, padding):
        w_VD = rng.normal(size=(size + padding, width)) * 2 / np.sqrt(width)
        w_VD[size:] = 1000
        h_BLD = rng.normal(size=(B, L, width))
        return Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), vocab_size=size)

    weight_BL = jnp.asarray([[1.0, 0.0, 0.5, 2.0, 1.0], [1.0, -1.0, 1.0, 0.0, 0.25]])
    return head(D, 127), Dense(jnp.asarray(rng.integers(size, size=(B, L)), jnp.int32), head(D + 3, 63)), weight_BL


@pytest.mark.parametrize(("mode", "divergences"), [("forward", ALL), ("recompute", WITHOUT_NUMBERS)])
def test_streamed_values_and_gradients_are_those_of_the_definition(mode, divergences):
    head, target, weight_BL = streamed_case()
    objective = Objective.of({str(i): Term(divergence) for i, divergence in enumerate(divergences)})
    knobs = {name: 0.5 + 0.25 * i for i, name in enumerate(objective.names)}

    def run(**how):
        @jax.jit
        def total(head):
            return weighted_sum(objective, head, target, weight_BL, knobs, **how)

        (_, values), gradient = jax.value_and_grad(total, has_aux=True)(head)
        return values, gradient

    values, gradient = run(mode=mode, positions=2)
    expected, expected_gradient = run(implementation="reference")
    for name in objective.names:
        np.testing.assert_allclose(values[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.all((np.asarray(values[name]) != 0) == (np.asarray(weight_BL) != 0))
    for got, exact in ((gradient.h_BLD, expected_gradient.h_BLD), (gradient.w_VD, expected_gradient.w_VD)):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    assert not np.any(gradient.w_VD[2049:])


@pytest.mark.parametrize("divergence", [d for d in ALL if not isinstance(d, AdaptiveKL)], ids=str)
def test_on_a_sharded_vocabulary_value_and_gradient_are_the_same(draw, teach, both, divergence):
    z_BLV, z_teacher_BLV, number = draw(0, 2.0, 32), draw(1, 2.0, 32), 4
    expected_BL, expected_BLV = both(divergence, z_BLV, teach(z_teacher_BLV, LABEL))

    def shard(z_BLV, z_teacher_BLV, first):
        @dataclasses.dataclass
        class Part:
            label_BL = jnp.asarray(LABEL)

            def logits(self, *_):
                return z_teacher_BLV

        ones_BL = jnp.ones((2, 3))
        return chunked.on_logits(divergence, z_BLV, Part(), ones_BL, Vocabulary(first, ("shards",)), True)

    cut = lambda z: jnp.moveaxis(jnp.asarray(z).reshape(2, 3, number, -1), 2, 0)  # noqa: E731
    value, slope = jax.vmap(shard, axis_name="shards")(cut(z_BLV), cut(z_teacher_BLV), 8 * jnp.arange(number))
    np.testing.assert_allclose(value, np.broadcast_to(expected_BL, (number, 2, 3)), rtol=1e-5, atol=32 * U)
    np.testing.assert_allclose(jnp.moveaxis(slope, 0, 2).reshape(2, 3, 32), expected_BLV, atol=128 * U)
