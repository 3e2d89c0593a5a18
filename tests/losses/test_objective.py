"""Objectives: named terms, their coefficients, and the sum."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.head import Head
from jaxdistill.losses import linear_heads
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.targets import Labels
from jaxdistill.losses.z_loss import ZLoss
from jaxdistill.optim import Linear

Z_BLV = np.random.default_rng(0).normal(size=(2, 3, 9)).astype(np.float32)
TARGET = Labels(jnp.zeros((2, 3), jnp.int32))


def weighted_sum(objective, knobs):
    """The objective on a head whose logits are Z_BLV."""
    head = Head(jnp.asarray(Z_BLV), jnp.eye(9), vocab_size=9)
    return linear_heads.weighted_sum(objective, head, TARGET, jnp.ones((2, 3)), knobs)


def test_an_objective_is_the_weighted_sum_of_its_terms_and_reports_them_unweighted():
    objective = Objective.of({"ce": Term(CrossEntropy()), "z": Term(ZLoss())})
    total, values = weighted_sum(objective, {"ce": 2.0, "z": -0.5})
    np.testing.assert_allclose(values["ce"], CrossEntropy()(Z_BLV, TARGET), rtol=1e-6)
    np.testing.assert_allclose(values["z"], ZLoss()(Z_BLV, TARGET), rtol=1e-6)
    np.testing.assert_allclose(total, jnp.sum(2 * values["ce"] - 0.5 * values["z"]), rtol=1e-6)


def test_a_coefficient_that_names_a_controller_is_its_knob_times_the_terms_own():
    objective = Objective.of({"ce": Term(CrossEntropy(), "phi")})
    assert objective.coef("ce", {"ce": 2.0, "phi": 0.25}) == 0.5 and Term(CrossEntropy(), "phi").at(3, 10) == 1


def test_a_coefficient_is_a_number_or_a_schedule():
    assert Term(CrossEntropy(), 0.25).at(3, 10) == 0.25
    schedule = Term(CrossEntropy(), Linear(1.0, 0.0, fraction=0.5))
    assert [schedule.at(step, 10) for step in (0, 1, 5, 9)] == [1.0, 0.8, 0.0, 0.0]


def test_a_term_without_a_coefficient_is_an_error_and_not_a_one():
    with pytest.raises(KeyError):
        weighted_sum(Objective.of({"ce": Term(CrossEntropy()), "z": Term(ZLoss())}), {"ce": 1.0})


def test_objectives_of_the_same_losses_are_equal_so_that_they_share_one_compiled_program():
    one, other = (Objective.of({"ce": Term(CrossEntropy(), coef)}) for coef in (1.0, 0.5))
    assert one == other and hash(one) == hash(other)
    assert one != Objective.of({"ce": Term(ZLoss())})
