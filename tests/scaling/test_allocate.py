"""Optimal allocations against closed forms, a dense grid, and the numbers recomputed from the published law."""

import dataclasses

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.scaling import basis, flops, laws
from jaxdistill.scaling.allocate import Question, allocate, optimum, supervised_optimum
from jaxdistill.scaling.scenarios import (
    BEST_CASE,
    BOTH,
    SCENARIOS,
    TEACHER_INFERENCE,
    TEACHER_PRETRAINING,
    ForwardCost,
)

PUBLISHED = basis.published(resamples=60)
LOSSES = [  # N_S, C, then L: supervised, best case, teacher inference, teacher pretraining, both; with B' calibrated
    (3e8, 1e20, 2.4766, 2.4400, 2.4614, 2.5495, 2.5726),
    (3e8, 1e21, 2.3648, 2.3517, 2.3630, 2.3738, 2.3967),
    (3e8, 1e23, 2.3026, 2.3028, 2.3047, 2.3028, 2.3057),
    (3e8, 1e25, 2.2937, 2.2959, 2.2961, 2.2959, 2.2962),
    (1e9, 1e20, 2.4192, 2.3575, 2.3835, 2.5382, 2.5508),
    (1e9, 1e21, 2.2215, 2.2020, 2.2182, 2.2854, 2.3034),
    (1e9, 1e23, 2.1000, 2.1049, 2.1089, 2.1059, 2.1137),
    (1e9, 1e25, 2.0817, 2.0903, 2.0909, 2.0903, 2.0910),
    (3e9, 1e21, 2.1766, 2.1328, 2.1523, 2.2735, 2.2836),
    (3e9, 1e23, 1.9628, 1.9641, 1.9714, 1.9767, 1.9913),
    (1e10, 1e20, 2.6709, 2.5125, 2.5304, 2.6939, 2.6968),
    (1e10, 1e21, 2.2290, 2.1152, 2.1525, 2.3061, 2.3109),
    (1e10, 1e23, 1.8664, 1.8540, 1.8663, 1.9115, 1.9231),
    (1e10, 1e25, 1.7942, 1.7974, 1.8006, 1.7984, 1.8045),
]


def best(scenario, N_S, compute, **given):
    """The optimum of the published law, floats."""
    found = optimum(PUBLISHED, PUBLISHED.laws, Question(scenario, N_S, **given), compute)
    return type(found)(*(field.item() for field in found))


@pytest.mark.parametrize("N_S, compute, alone, distilled", [(N, C, L, rest) for N, C, L, *rest in LOSSES])
def test_the_optima_of_the_published_law_are_the_recomputed_ones(N_S, compute, alone, distilled):
    assert supervised_optimum(PUBLISHED, PUBLISHED.laws, compute, N_S).loss.item() == pytest.approx(alone, abs=2e-4)
    for scenario, loss in zip(SCENARIOS, distilled, strict=True):
        assert best(scenario, N_S, compute).loss == pytest.approx(loss, abs=2e-4)


@pytest.mark.parametrize(
    "compute, N, D_over_N, loss",
    [
        (3e19, 5.03e8, 15.1, 2.572),
        (1e20, 9.32e8, 15.5, 2.419),
        (3e20, 1.64e9, 15.8, 2.296),
        (1e21, 3.04e9, 15.8, 2.177),
        (1e22, 9.92e9, 15.6, 1.986),
        (1e23, 3.24e10, 15.0, 1.834),
    ],
)
def test_compute_optimal_supervised_models_are_the_recomputed_ones(compute, N, D_over_N, loss):
    found = supervised_optimum(PUBLISHED, PUBLISHED.laws, compute)
    assert found.N.item() == pytest.approx(N, rel=0.01)
    assert found.D.item() / found.N.item() == pytest.approx(D_over_N, rel=0.01)
    assert found.loss.item() == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize("law", [laws.HOFFMANN, laws.BESIROGLU, laws.BUSBRIDGE_SUPERVISED])
def test_where_a_token_costs_6n_the_supervised_optimum_is_hoffmanns_closed_form(law):
    """N* = G (C/6)^a and D* = (C/6)^b / G, whatever gamma: and so N* grows as C^a, D* as C^b."""
    own = dataclasses.replace(PUBLISHED, cost=ForwardCost())
    compute_K = np.geomspace(1e18, 1e25, 8)
    found = supervised_optimum(own, basis.Laws(law, None), compute_K)
    a, G = law.beta / (law.alpha + law.beta), (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    np.testing.assert_allclose(found.N, G * (compute_K / 6) ** a, rtol=1e-4)
    np.testing.assert_allclose(found.D, (compute_K / 6) ** (1 - a) / G, rtol=1e-4)


def test_the_supervised_frontier_is_the_envelope_of_the_curves_of_fixed_size():
    """dL*/dlog C = dL/dlog D at the optimum, where the first-order gain of another size vanishes."""
    compute_K = 1e21 * np.exp([-1e-3, 0.0, 1e-3])
    found = supervised_optimum(PUBLISHED, PUBLISHED.laws, compute_K)
    N, D = found.N[1], found.D[1]
    along_D = (PUBLISHED.laws.alone(N, D * np.exp(1e-3)) - PUBLISHED.laws.alone(N, D * np.exp(-1e-3))) / 2e-3
    assert (found.loss[2] - found.loss[0]) / 2e-3 == pytest.approx(along_D, rel=1e-5)


def dense_grid(scenario, N_S, compute, points=400):
    """The lowest loss on a dense grid of teachers, straight from Eq. 1, 8 and 9 with the published digits."""
    N_T, D_T = np.meshgrid(np.geomspace(1e6, 1e17, points), np.geomspace(1e6, 1e17, points), indexing="ij")
    F_S, F_T = (flops.family_flops(N, flops.BUSBRIDGE_FAMILY) for N in (N_S, N_T))
    D_S = (compute - 3 * scenario.delta_pretraining * F_T * D_T) / (3 * F_S + scenario.delta_logits * F_T)
    D_S = np.where(D_S >= 1, D_S, np.nan)

    def alone(N, D):
        return 1.220 + (3355 / N**0.408 + 18186 / D**0.431) ** 0.452

    L_T = alone(N_T, D_T)
    gate = (1 + (L_T / (alone(N_S, D_S) * 1.315)) ** (1 / 0.09)) ** (-522.6 * 0.09)
    return np.nanmin(L_T + L_T**-2.549 * gate * (2243 / N_S**0.321 + 2.4181e6 / D_S**0.637) ** 0.764)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("N_S, compute", [(3e8, 1e20), (1e9, 1e25), (1e10, 1e21), (5e10, 1e23)])
def test_no_point_of_a_dense_grid_beats_the_optimum(scenario, N_S, compute):
    found, grid = best(scenario, N_S, compute).loss, dense_grid(scenario, N_S, compute)
    assert grid - 1e-3 < found <= grid + 1e-12


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("N_S", [3e8, 3e9, 5e10])
def test_an_allocation_spends_the_budget(scenario, N_S):
    found = best(scenario, N_S, 1e22)
    F_S, F_T = PUBLISHED.cost(N_S), PUBLISHED.cost(found.N_T)
    own = {"delta_logits": scenario.delta_logits, "delta_pretraining": scenario.delta_pretraining}
    assert flops.distillation_flops(F_S, found.D_S, F_T, found.D_T, **own) == pytest.approx(1e22, rel=1e-9)


@pytest.mark.parametrize("compute", [1e20, 1e22, 1e24, 1e26])
@pytest.mark.parametrize("N_S", [3e8, 5e8, 1e9, 3e9, 5e9, 1e10, 3e10, 5e10])
def test_paying_for_more_is_never_better_and_teachers_follow_the_bill(N_S, compute):
    free, inference, pretraining, both = (best(scenario, N_S, compute) for scenario in SCENARIOS)
    assert free.loss <= inference.loss + 1e-9 and inference.loss <= both.loss + 1e-9
    assert free.loss <= pretraining.loss + 1e-9 and pretraining.loss <= both.loss + 1e-9
    assert pytest.approx(1e17, rel=1e-3) == inference.D_T  # logits cost by the size: overtrain a small teacher
    assert 13 <= pretraining.D_T / pretraining.N_T <= 16  # training costs by both: compute-optimal


@pytest.mark.parametrize(
    "N_S, compute, order",
    [(1e9, 1e21, "training"), (1e9, 1e26, "student, logits"), (3e10, 1e20, "student"), (1e10, 1e25, "thirds")],
)
def test_the_bill_of_pretraining_and_inference_is_split_as_in_the_papers_table_3(N_S, compute, order):
    found = best(BOTH, N_S, compute)
    student, logits, training = BOTH.shares(PUBLISHED.cost(N_S), found.D_S, PUBLISHED.cost(found.N_T), found.D_T)
    assert {
        "training": training > max(student, logits),
        "student": student > 0.5,
        "student, logits": abs(student - logits) < 0.2 and training < min(student, logits) / 4,
        "thirds": min(student, logits, training) > 0.2 and max(student, logits, training) < 0.5,
    }[order]


def test_the_printed_b_has_two_basins_and_the_deeper_one_is_found():
    """With B' as printed a 10B student at 1e22 FLOPs has two minima over teachers that exist; one start may miss it."""
    printed = basis.printed(resamples=2)
    N_T = np.geomspace(1e7, 1e14, 4000)
    L_T = laws.supervised(laws.BUSBRIDGE_SUPERVISED, N_T, 1e17)
    D_S = 1e22 / (3 * printed.cost(1e10) + printed.cost(N_T))
    loss = printed.laws.student(1e10, D_S, L_T)
    minima = np.flatnonzero((loss[1:-1] < loss[:-2]) & (loss[1:-1] < loss[2:]))
    assert len(minima) == 2
    found = optimum(printed, printed.laws, Question(TEACHER_INFERENCE, 1e10), 1e22)
    assert found.loss.item() <= loss.min() + 1e-12


def test_a_given_teacher_is_kept_and_leaves_the_student_the_tokens_of_eq_27():
    found = best(TEACHER_INFERENCE, 1e9, 1e21, N_T=7e9, D_T=2e12)
    assert (pytest.approx(7e9), pytest.approx(2e12)) == (found.N_T, found.D_T)
    assert pytest.approx(1e21 / (3 * PUBLISHED.cost(1e9) + PUBLISHED.cost(7e9)), rel=1e-9) == found.D_S
    for free in ({"N_T": 7e9}, {"D_T": 2e12}):
        assert best(TEACHER_INFERENCE, 1e9, 1e21, **free).loss < found.loss


def test_a_student_of_free_size_is_at_least_as_good_as_every_given_one():
    chosen = best(TEACHER_INFERENCE, None, 1e21)
    for N_S in np.geomspace(1e8, 1e12, 60):
        assert chosen.loss <= best(TEACHER_INFERENCE, N_S, 1e21).loss + 1e-12


def test_one_problem_each_or_all_at_once_give_the_same():
    compute_K = np.geomspace(1e20, 1e24, 5)
    together = optimum(PUBLISHED, PUBLISHED.laws, Question(BOTH, 3e9), compute_K)
    np.testing.assert_allclose(together.loss, [best(BOTH, 3e9, compute).loss for compute in compute_K], rtol=1e-10)


def test_a_plan_says_how_sure_the_law_is_and_where_it_leaves_its_runs():
    plan = allocate(PUBLISHED, Question(TEACHER_INFERENCE, 3e9), 1e22)
    assert plan.allocation.loss.low < plan.allocation.loss.value < plan.allocation.loss.high
    assert plan.alone.loss.low < plan.alone.loss.value < plan.alone.loss.high
    assert plan.allocation.N_T.low < plan.allocation.N_T.value < plan.allocation.N_T.high
    assert plan.allocation.N_S == (3e9, 3e9, 3e9)
    assert plan.gain.low < plan.gain.value < plan.gain.high
    assert plan.gain.value == pytest.approx(plan.alone.loss.value - plan.allocation.loss.value, abs=1e-12)
    surely = allocate(PUBLISHED, Question(BEST_CASE, 3e9), 1e21).gain
    assert 0 < surely.low < surely.value < surely.high
    edge, outside = plan.notes
    assert "teacher tokens is the largest of the search" in edge
    assert "teacher tokens 1e+17 (the runs have 2e+09 to 5.12e+11)" in outside and "student" not in outside
    assert allocate(PUBLISHED, Question(TEACHER_PRETRAINING, 1e9), 1e21).notes == ()


def test_a_budget_that_buys_no_token_is_refused():
    with pytest.raises(InputError, match="do not pay for one token"):
        allocate(PUBLISHED, Question(BOTH, 1e9, N_T=70e9, D_T=15e12), 1e20)
    with pytest.raises(InputError, match="do not pay for one token"):
        allocate(PUBLISHED, Question(BEST_CASE, 1e9), 1e9)
