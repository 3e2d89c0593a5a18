"""The laws against the numbers of the papers, their limits, and a float64 evaluation written from the formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.scaling import laws
from jaxdistill.scaling.laws import (
    BUSBRIDGE_DISTILLATION_CALIBRATED,
    BUSBRIDGE_DISTILLATION_PRINTED,
    BUSBRIDGE_SUPERVISED,
)

LOSSES = [
    (198e6, 3.96e9, 2.789353),
    (546e6, 10.92e9, 2.514941),
    (1e9, 20e9, 2.374692),
    (1e9, 250e9, 2.190752),
    (3e9, 1e12, 2.000810),
    (10e9, 1e12, 1.881970),
    (7.75e9, 512e9, 1.932888),
]
STUDENTS = [
    (198e6, 3.96e9, 2.5, 2.668132, 2.714659),
    (546e6, 10.92e9, 2.25, 2.423596, 2.458846),
    (1e9, 20e9, 2.2, 2.316953, 2.336672),
    (1e9, 250e9, 2.0, 2.171606, 2.177521),
    (3e9, 1e12, 1.84, 1.991469, 1.994548),
    (10e9, 1e12, 1.75, 1.864367, 1.867783),
    (7.75e9, 512e9, 2.0, 2.009796, 2.010209),
]


@pytest.fixture
def students():
    """Random students and teachers over a far wider range than anyone trains."""
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(4, 12, 300), 10 ** rng.uniform(5, 14, 300)
    return N, D, rng.uniform(1.2, 6.0, 300), laws.supervised(BUSBRIDGE_SUPERVISED, N, D)


@pytest.mark.parametrize("N, D, loss", LOSSES)
def test_the_supervised_law_gives_the_known_losses(N, D, loss):
    assert laws.supervised(BUSBRIDGE_SUPERVISED, N, D) == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("N, D, L_T, printed, calibrated", STUDENTS)
def test_the_distillation_law_gives_the_known_losses(N, D, L_T, printed, calibrated):
    alone = laws.supervised(BUSBRIDGE_SUPERVISED, N, D)
    assert laws.distillation(BUSBRIDGE_DISTILLATION_PRINTED, N, D, L_T, alone) == pytest.approx(printed, abs=1e-5)
    assert laws.distillation(BUSBRIDGE_DISTILLATION_CALIBRATED, N, D, L_T, alone) == pytest.approx(calibrated, abs=1e-5)


def test_the_gate_is_the_published_one_in_c1_d1_and_f1():
    ratio, c1, d1, f1 = np.linspace(0.3, 2.0, 50), 522.6, 1.315, 0.09
    published = (1 + (ratio / d1) ** (1 / f1)) ** (-c1 * f1)
    np.testing.assert_allclose(np.exp(laws.log_gate(BUSBRIDGE_DISTILLATION_PRINTED, ratio)), published, rtol=1e-9)
    assert BUSBRIDGE_DISTILLATION_PRINTED.d1 == pytest.approx(d1, rel=1e-12)
    assert BUSBRIDGE_DISTILLATION_PRINTED.kappa == pytest.approx(2.244, abs=1e-3)


def test_an_infinite_c1_is_the_limit_of_large_ones():
    limit = dataclasses.replace(BUSBRIDGE_DISTILLATION_PRINTED, c1=np.inf)
    ratio = np.linspace(0.3, 1.2, 50)
    errors = []
    for c1 in (1e4, 1e5, 1e6):
        close = dataclasses.replace(limit, c1=c1)
        errors.append(np.max(np.abs(laws.log_gate(close, ratio) - laws.log_gate(limit, ratio))))
    np.testing.assert_allclose(np.diff(np.log10(errors)), -1, atol=0.02)
    np.testing.assert_allclose(laws.log_gate(limit, ratio), -limit.kappa * ratio ** (1 / limit.f1), rtol=1e-13)


def test_direct_and_logarithmic_forms_agree(students):
    N, D, L_T, alone = students
    gate = (1 + (L_T / (alone * 1.315)) ** (1 / 0.090)) ** (-522.6 * 0.090)  # Eq. 8 and Table 6, written out
    direct = L_T + L_T**-2.549 * gate * (2243 / N**0.321 + 24181 / D**0.637) ** 0.764
    for value in (
        laws.distillation(BUSBRIDGE_DISTILLATION_PRINTED, N, D, L_T, alone),
        np.exp(laws.log_distillation(BUSBRIDGE_DISTILLATION_PRINTED, N, D, L_T, alone)),
    ):
        np.testing.assert_allclose(value, direct, rtol=1e-12)
    np.testing.assert_allclose(alone, np.exp(laws.log_supervised(BUSBRIDGE_SUPERVISED, N, D)), rtol=1e-12)


@pytest.mark.filterwarnings("error")
def test_a_law_far_from_all_runs_says_zero_or_infinity_and_not_nan():
    wild = dataclasses.replace(BUSBRIDGE_DISTILLATION_PRINTED, A=1e200, alpha=-3.0, gamma=9.0, c1=np.inf, f1=1e-3)
    assert laws.distillation(wild, 1e9, 1e10, 3.0, 2.0) == 3.0  # the gate is shut, however wide the student's share
    assert laws.distillation(wild, 1e9, 1e10, 2.0, 3.0) == np.inf


def test_no_student_is_predicted_to_beat_its_teacher(students):
    N, D, L_T, alone = students
    loss = laws.distillation(BUSBRIDGE_DISTILLATION_CALIBRATED, N, D, L_T, alone)
    assert (loss >= L_T).all() and (loss[alone > L_T] > L_T[alone > L_T]).all()


@pytest.mark.parametrize("N, D, L_T", [(1e30, 1e30, 2.0), (1e9, 2e10, 10.0)])
def test_an_infinite_student_and_a_hopeless_teacher_give_the_teachers_loss(N, D, L_T):
    alone = laws.supervised(BUSBRIDGE_SUPERVISED, N, D)
    assert laws.distillation(BUSBRIDGE_DISTILLATION_CALIBRATED, N, D, L_T, alone) == pytest.approx(L_T, abs=1e-9)


INFINITE_DATA = [  # N, L(N, inf), the lowest L_S(N, inf, L_T) and the L_T that gives it
    (1e8, 2.5331, 2.5206, 2.3298),
    (3e8, 2.2923, 2.2948, 2.1422),
    (1e9, 2.0788, 2.0880, 1.9580),
    (3e9, 1.9213, 1.9310, 1.8122),
    (1e10, 1.7816, 1.7876, 1.6739),
    (3e10, 1.6786, 1.6778, 1.5625),
    (1e11, 1.5873, 1.5752, 1.4478),
]


@pytest.mark.parametrize("N, alone, student, teacher", INFINITE_DATA)
def test_infinite_data_makes_the_best_student_as_good_as_a_supervised_model(N, alone, student, teacher):
    """Appendix E.6: min over teachers of L_S(N, inf, L_T) = L(N, inf), to 0.8 % with the printed digits."""
    L_T = np.linspace(1.25, 3.0, 20001)
    found = laws.supervised(BUSBRIDGE_SUPERVISED, N, 1e60)
    loss = laws.distillation(BUSBRIDGE_DISTILLATION_PRINTED, N, 1e60, L_T, found)
    assert loss.min() == pytest.approx(found, rel=0.008)
    assert (found, loss.min(), L_T[loss.argmin()]) == pytest.approx((alone, student, teacher), abs=2e-4)


@pytest.mark.parametrize(
    "N_S, D_S, best",
    [(N, 20 * N, L) for N, L in ((143e6, 2.159), (546e6, 2.051), (975e6, 2.019), (1.82e9, 1.947))]
    + [(N, 1e12, L) for N, L in ((1e9, 1.988), (3e9, 1.849), (1e10, 1.712), (3e10, 1.573))]
    + [(N, 16e12, L) for N, L in ((1e9, 1.968), (3e9, 1.825), (1e10, 1.688), (3e10, 1.576))],
)
def test_the_best_teacher_of_each_student_is_the_recomputed_one(N_S, D_S, best):
    L_T = np.linspace(1.3, 2.7, 14001)
    alone = laws.supervised(BUSBRIDGE_SUPERVISED, N_S, D_S)
    loss = laws.distillation(BUSBRIDGE_DISTILLATION_CALIBRATED, N_S, D_S, L_T, alone)
    assert L_T[loss.argmin()] == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize(
    "N_T, N_S, tokens",
    [
        (546e6, 198e6, 25e9),
        (546e6, 546e6, 7e9),
        (546e6, 1.82e9, 3.7e9),
        (1.82e9, 546e6, 95e9),
        (1.82e9, 975e6, 39e9),
        (1.82e9, 1.82e9, 21e9),
        (1.82e9, 7.75e9, 11e9),
        (7.75e9, 198e6, 140e9),
        (7.75e9, 975e6, 1.9e12),
        (7.75e9, 1.82e9, 460e9),
        (7.75e9, 7.75e9, 83e9),
    ],
)
def test_from_these_tokens_on_a_student_is_better_off_without_its_teacher(N_T, N_S, tokens):
    """A teacher of 20 tokens a parameter: below them distilling wins, above them training alone."""
    L_T = laws.supervised(BUSBRIDGE_SUPERVISED, N_T, 20 * N_T)

    def gain(D):
        alone = laws.supervised(BUSBRIDGE_SUPERVISED, N_S, D)
        return alone - laws.distillation(BUSBRIDGE_DISTILLATION_CALIBRATED, N_S, D, L_T, alone)

    D = np.geomspace(1e9, 1e13, 4001)
    crossing = D[np.flatnonzero(gain(D) > 0)[-1]]
    assert crossing == pytest.approx(tokens, rel=0.06)


def test_a_stronger_teacher_can_make_a_worse_student():
    """The capacity gap: a 198M student at 20 tokens a parameter has its best teacher at a loss of 2.12."""
    L_T = np.linspace(1.7, 2.7, 2001)
    alone = laws.supervised(BUSBRIDGE_SUPERVISED, 198e6, 3.96e9)
    loss = laws.distillation(BUSBRIDGE_DISTILLATION_CALIBRATED, 198e6, 3.96e9, L_T, alone)
    assert L_T[np.argmin(loss)] == pytest.approx(2.120, abs=1e-3)
    assert loss[0] > loss.min() + 0.01


def test_a_law_is_a_pytree_that_jax_differentiates_to_the_closed_form():
    N, D = 1e9, 2e10
    with jax.enable_x64(True):
        gradient = jax.grad(lambda law: laws.supervised(law, jnp.asarray(N), D))(laws.HOFFMANN)
    assert pytest.approx(1.0, rel=1e-12) == gradient.E
    assert pytest.approx(N**-laws.HOFFMANN.alpha, rel=1e-12) == gradient.A
    assert gradient.beta == pytest.approx(-laws.HOFFMANN.B * D**-laws.HOFFMANN.beta * np.log(D), rel=1e-12)


def test_the_limit_c1_infinite_has_finite_gradients():
    law = dataclasses.replace(BUSBRIDGE_DISTILLATION_PRINTED, c1=np.inf)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda law: laws.log_gate(law, jnp.asarray(0.9)))(law)
    assert gradient.kappa == pytest.approx(-(0.9 ** (1 / law.f1)), rel=1e-12)
    assert gradient.f1 == pytest.approx(law.kappa * 0.9 ** (1 / law.f1) * np.log(0.9) / law.f1**2, rel=1e-12)


def test_kaplans_law_is_the_case_without_irreducible_loss():
    """Eq. 1.5 and Table 2 of Kaplan et al. (2020); N or D alone give back their power laws."""
    N, D = np.geomspace(1e6, 1e11, 5), np.geomspace(1e8, 1e12, 5)
    joint = ((6.4e13 / N) ** (0.076 / 0.103) + 1.8e13 / D) ** 0.103
    np.testing.assert_allclose(laws.supervised(laws.KAPLAN, N, D), joint, rtol=1e-12)
    np.testing.assert_allclose(np.exp(laws.log_supervised(laws.KAPLAN, N, D)), joint, rtol=1e-12)
    np.testing.assert_allclose(laws.supervised(laws.KAPLAN, N, 1e60), (6.4e13 / N) ** 0.076, rtol=1e-9)


@pytest.mark.parametrize("N, D, loss", [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)])
def test_repeated_tokens_give_the_losses_of_muennighoffs_own_code(N, D, loss):
    assert laws.data_constrained(laws.MUENNIGHOFF, N, D, 25e9) == pytest.approx(loss, rel=1e-13)


def test_the_best_number_of_epochs_is_muennighoffs():
    """1e22 FLOPs and 25B unique tokens: their grid ends at 9.493 epochs, and the loss is flat there."""
    D = np.geomspace(25e9, 1e12, 20001)
    loss = laws.data_constrained(laws.MUENNIGHOFF, 1e22 / (6 * D), D, 25e9)
    assert D[loss.argmin()] / 25e9 == pytest.approx(237_336_955_477.55 / 25e9, rel=1e-3)


def test_new_tokens_are_worth_the_base_law_and_repeated_ones_less_until_they_are_worth_nothing():
    law, unique = laws.MUENNIGHOFF, 25e9
    N = laws.optimal_parameters(law.base, unique)
    assert laws.data_constrained(law, N, 20e9, unique) == pytest.approx(
        laws.data_constrained(law, N, 20e9, 1e15), rel=1e-12
    )
    D = unique * np.array([1, 2, 4, 16, 64, 1e4, 1e6])
    constrained = laws.data_constrained(law, N, D, unique)
    assert (np.diff(constrained) <= 0).all() and (constrained[1:] > laws.supervised(law.base, N, D[1:])).all()
    limit = laws.supervised(law.base, N, unique * (1 + law.R_D))
    np.testing.assert_allclose(constrained[-2:], limit, rtol=1e-12)


def test_the_data_constrained_law_is_the_same_in_jax():
    with jax.enable_x64(True):
        value = laws.data_constrained(laws.MUENNIGHOFF, jnp.asarray(6.34e9), jnp.asarray(242e9), 25e9)
    assert float(value) == pytest.approx(2.2256440889984477, rel=1e-12)


def test_optimal_tokens_and_parameters_are_inverse_and_minimise_the_loss_at_fixed_n_times_d():
    for law in (laws.HOFFMANN, laws.BESIROGLU, BUSBRIDGE_SUPERVISED):
        N = np.geomspace(1e7, 1e12, 6)
        D = laws.optimal_tokens(law, N)
        np.testing.assert_allclose(laws.optimal_parameters(law, D), N, rtol=1e-12)
        for factor in (0.99, 1.01):
            assert (laws.supervised(law, N * factor, D / factor) > laws.supervised(law, N, D)).all()
