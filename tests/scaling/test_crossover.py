"""When supervised training is as good, against the crossovers recomputed from the published law."""

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.scaling import basis
from jaxdistill.scaling.allocate import Question, allocate
from jaxdistill.scaling.crossover import compare, crossover, gap, positive
from jaxdistill.scaling.scenarios import BEST_CASE, BOTH, SCENARIOS, TEACHER_INFERENCE, TEACHER_PRETRAINING

PUBLISHED = basis.published(resamples=60)


@pytest.mark.parametrize(
    "N_S, free, inference",
    [
        (3e8, 8e22, 2.2e21),
        (5e8, 1.6e22, 1.0e21),
        (1e9, 1.6e22, 1.6e21),
        (3e9, 6.3e22, 7.9e21),
        (5e9, 2.0e23, 2.0e22),
        (1e10, 1.4e24, 1.0e23),
    ],
)
def test_crossovers_of_the_published_law_are_the_recomputed_ones(N_S, free, inference):
    for scenario, compute in ((BEST_CASE, free), (TEACHER_INFERENCE, inference)):
        found = crossover(PUBLISHED, Question(scenario, N_S)).supervised_from
        assert found.value == pytest.approx(compute, rel=0.15)
        assert found.low < found.value < found.high


def test_larger_students_profit_from_a_teacher_for_longer():
    sizes = (5e8, 1e9, 3e9, 5e9, 1e10)
    ends = [crossover(PUBLISHED, Question(TEACHER_INFERENCE, N_S)).supervised_from.value for N_S in sizes]
    assert (np.diff(ends) > 0).all()


@pytest.mark.parametrize("scenario", [TEACHER_PRETRAINING, BOTH], ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("N_S", [1e9, 3e9, 1e10])
def test_a_teacher_trained_for_one_student_never_pays_off(scenario, N_S):
    found = crossover(PUBLISHED, Question(scenario, N_S))
    assert found.wins == () and found.supervised_from.value == 0


def test_thirty_billion_parameters_in_the_best_case_never_cross():
    found = crossover(PUBLISHED, Question(BEST_CASE, 3e10))
    assert found.wins == ((0.0, np.inf),) and np.isinf(found.supervised_from.value)


def test_a_teacher_shared_by_many_students_pays_off():
    question = Question(BOTH.shared_by(1000), 1e9)
    assert gap(PUBLISHED, PUBLISHED.laws, question, np.array([1e21])) > 0
    assert gap(PUBLISHED, PUBLISHED.laws, Question(BOTH, 1e9), np.array([1e21])) < 0


def test_roots_are_found_between_points_and_open_ends_are_said():
    x = np.geomspace(1, 1e4, 5)
    assert positive(x, np.array([1.0, 2, 3, 4, 5])) == ((0.0, np.inf),)
    assert positive(x, np.array([-1.0, -2, -3, -4, -5])) == ()
    assert positive(x, np.array([1.0, -1, -1, 1, 1])) == (
        (0.0, pytest.approx(10**0.5)),
        (pytest.approx(10**2.5), np.inf),
    )
    assert positive(x, np.array([-np.inf, -1, 3, 0, 0])) == ((pytest.approx(10**1.25), pytest.approx(1e3)),)


def test_the_scenarios_are_compared_for_the_same_compute_and_what_cannot_be_paid_has_no_plan():
    plan = allocate(PUBLISHED, Question(TEACHER_INFERENCE, 1e9, N_T=70e9, D_T=15e12), 1e21)
    rows = compare(plan)
    assert [row.scenario for row in rows] == list(SCENARIOS)
    assert [row.plan is None for row in rows] == [False, False, True, True]
    assert rows[1].plan.allocation.loss == plan.allocation.loss


def test_a_crossover_without_a_student_is_refused():
    with pytest.raises(InputError, match="give the size of the student"):
        crossover(PUBLISHED, Question(BOTH))
