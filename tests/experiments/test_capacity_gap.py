"""The closed form of the capacity gap of kernel regression, against the two constrained fits it stands for."""

import pathlib

import numpy as np
import pytest
import scipy.optimize

from jaxdistill.experiment import load_module

capacity_gap = load_module(pathlib.Path(__file__).parents[2] / "experiments" / "capacity_gap.py")


def closest(target: np.ndarray, functions: int, norm: float) -> np.ndarray:
    """The coefficients in a ball nearest to `target`, zero but for the first few: found numerically."""
    found = scipy.optimize.minimize(
        lambda x: ((x - target[:functions]) ** 2).sum(),
        np.full(functions, 0.01),
        constraints={"type": "ineq", "fun": lambda x: norm**2 - (x**2).sum()},
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return np.pad(found.x, (0, len(target) - functions))


@pytest.mark.parametrize("m", [1, 3, 5, 8, 12])
def test_the_error_is_that_of_a_student_fitted_to_a_fitted_teacher(m):
    alpha, n, T, D = np.random.default_rng(0).uniform(-1, 1, 12), 5, 1.3, 1.1
    student = closest(closest(alpha, m, T), n, D)
    assert capacity_gap.student_error(alpha, m, n, T, D) == pytest.approx(np.linalg.norm(alpha - student), rel=1e-6)


def test_a_better_teacher_helps_up_to_the_functions_of_its_student_and_harms_beyond():
    alpha, m = np.random.default_rng(1).uniform(-1, 1, 1000), np.arange(1, 1001)
    for n in capacity_gap.STUDENTS:
        error = capacity_gap.student_error(alpha, m, n)
        assert error[n - 1] < error[0] and (np.diff(error[n - 1 :]) >= -1e-12).all()
        assert capacity_gap.best(error) == n - 1
        assert n > 600 or error[-1] > error[n - 1] + 0.3
