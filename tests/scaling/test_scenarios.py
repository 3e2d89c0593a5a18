"""What a project pays for, against the accounting of the paper and hand counts."""

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.scaling import flops, scenarios, table
from jaxdistill.scaling.scenarios import BEST_CASE, BOTH, SCENARIOS, TEACHER_INFERENCE, TEACHER_PRETRAINING, ForwardCost
from tests.scaling.conftest import forward, laptop_rows


def test_a_family_costs_what_its_closed_form_says():
    cost, N = ForwardCost.of_family(flops.BUSBRIDGE_FAMILY), np.geomspace(1e6, 1e12, 20)
    np.testing.assert_allclose(cost(N), flops.family_flops(N, flops.BUSBRIDGE_FAMILY), rtol=1e-13)


def test_the_cost_of_a_family_is_recovered_from_its_runs():
    cost = ForwardCost.of_runs(table.table(laptop_rows()))
    N = np.geomspace(1e3, 1e9, 20)
    np.testing.assert_allclose(cost(N), forward(N), rtol=1e-9)


def test_the_elasticity_is_the_slope_of_the_cost_in_logarithms():
    cost, N = ForwardCost.of_family(flops.BUSBRIDGE_FAMILY), np.geomspace(1e5, 1e12, 20)
    slope = (np.log(cost(N * 1.001)) - np.log(cost(N / 1.001))) / (2 * np.log(1.001))
    np.testing.assert_allclose(cost.elasticity(N), slope, rtol=1e-6)
    assert ForwardCost().elasticity(7e9) == 1.0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_left_for_the_student_uses_up_the_budget_exactly(scenario):
    D_S = scenario.student_tokens(1e6, 10.0, 30.0, 500.0)
    own = {"delta_logits": scenario.delta_logits, "delta_pretraining": scenario.delta_pretraining}
    assert flops.distillation_flops(10.0, D_S, 30.0, 500.0, **own) == pytest.approx(1e6, rel=1e-12)
    assert sum(scenario.shares(10.0, D_S, 30.0, 500.0)) == pytest.approx(1.0, rel=1e-12)


def test_the_four_scenarios_pay_for_nothing_logits_training_and_both():
    tokens = [scenario.student_tokens(9e5, 10.0, 30.0, 500.0) for scenario in SCENARIOS]
    assert tokens == [9e5 / 30, 9e5 / 60, (9e5 - 45e3) / 30, (9e5 - 45e3) / 60]
    assert SCENARIOS == (BEST_CASE, TEACHER_INFERENCE, TEACHER_PRETRAINING, BOTH)


def test_students_that_share_a_teacher_and_a_cache_pay_for_them_once():
    """Three students of the same D_S: three trainings, one pass of the teacher, one training of it."""
    D_S = BOTH.shared_by(3).student_tokens(1e6, 10.0, 30.0, 500.0)
    assert pytest.approx(3e6, rel=1e-12) == 3 * (3 * 10 * D_S) + 30 * D_S + 3 * 30 * 500
    with pytest.raises(InputError, match="0 students"):
        BOTH.shared_by(0)


def test_an_unknown_scenario_is_refused_with_the_four_names():
    with pytest.raises(
        InputError, match="'cheap'; the four are best-case, teacher-inference, teacher-pretraining, both"
    ):
        scenarios.named("cheap")
