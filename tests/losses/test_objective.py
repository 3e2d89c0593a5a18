"""Objectives: named terms, their coefficients, and the sum."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.targets import Labels
from jaxdistill.losses.z_loss import ZLoss
from jaxdistill.optim import Linear

Z_BLV = np.random.default_rng(0).normal(size=(2, 3, 9)).astype(np.float32)
TARGET = Labels(jnp.zeros((2, 3), jnp.int32))


def test_an_objective_is_the_weighted_sum_of_its_terms_and_reports_them_unweighted():
    objective = Objective.of({"ce": Term(CrossEntropy()), "z": Term(ZLoss())})
    loss_BL, values = objective(Z_BLV, TARGET, {"ce": 2.0, "z": -0.5})
    np.testing.assert_array_equal(values["ce"], CrossEntropy()(Z_BLV, TARGET))
    np.testing.assert_array_equal(values["z"], ZLoss()(Z_BLV, TARGET))
    np.testing.assert_allclose(loss_BL, 2 * values["ce"] - 0.5 * values["z"], rtol=1e-6)


def test_a_coefficient_is_a_number_or_a_schedule():
    assert Term(CrossEntropy(), 0.25).at(3, 10) == 0.25
    schedule = Term(CrossEntropy(), Linear(1.0, 0.0, fraction=0.5))
    assert [schedule.at(step, 10) for step in (0, 1, 5, 9)] == [1.0, 0.8, 0.0, 0.0]


def test_a_term_without_a_coefficient_is_an_error_and_not_a_one():
    with pytest.raises(KeyError):
        Objective.of({"ce": Term(CrossEntropy()), "z": Term(ZLoss())})(Z_BLV, TARGET, {"ce": 1.0})


def test_objectives_of_the_same_losses_are_equal_so_that_they_share_one_compiled_program():
    one, other = (Objective.of({"ce": Term(CrossEntropy(), coef)}) for coef in (1.0, 0.5))
    assert one == other and hash(one) == hash(other)
    assert one != Objective.of({"ce": Term(ZLoss())})
