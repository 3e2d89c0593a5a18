"""When a teacher pays off: from which compute on the supervised model of the same size is as good."""

import dataclasses

import jax
import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling.allocate import (
    COARSE,
    FINE,
    Estimate,
    Plan,
    Question,
    allocate,
    estimate,
    optimum,
    supervised_optimum,
)
from jaxdistill.scaling.basis import Basis, Laws
from jaxdistill.scaling.scenarios import SCENARIOS, Scenario


@dataclasses.dataclass(frozen=True)
class Crossover:
    """When distillation pays off for a student, in FLOPs.

    Attributes:
      wins: ranges of compute in which the student is expected to beat the supervised model of its size and compute;
        0 and infinity stand for the ends of the search.
      supervised_from: compute from which on the supervised model is as good for ever; 0 if always, infinite if never.
    """

    wins: tuple[tuple[float, float], ...]
    supervised_from: Estimate


def crossover(basis: Basis, question: Question, draws: int = 50) -> Crossover:
    """Compare distilled and supervised models of the given N_S over all budgets, from one token a parameter up.

    Args:
      basis: the laws.
      question: the scenario and what is given; N_S must be.
      draws: how many draws the interval takes.
    """
    compute_C = budgets(basis, question, per_decade=8)
    wins = positive(compute_C, gap(basis, basis.laws, question, compute_C))
    compute_C = budgets(basis, question, per_decade=3)
    few = jax.tree.map(lambda field: np.asarray(field)[:draws], basis.draws)
    K = len(np.atleast_1d(few.supervised.A))
    each = jax.tree.map(lambda field: np.repeat(field, len(compute_C)), few)
    gap_KC = gap(basis, each, question, np.tile(compute_C, K), COARSE).reshape(K, -1)
    return Crossover(wins, estimate(_end(wins), np.array([_end(positive(compute_C, gap_C)) for gap_C in gap_KC])))


def budgets(basis: Basis, question: Question, per_decade: int) -> np.ndarray:
    """Training FLOPs of the student from one token a parameter to the most tokens of the search, evenly in log."""
    if question.N_S is None:
        raise InputError("a crossover compares models of one size; give the size of the student")
    if basis.search["D"][1] <= question.N_S:
        raise InputError(f"a student of {question.N_S:.3g} parameters lies beyond anything this law can speak of")
    ends = 3 * basis.cost(question.N_S) * np.array([question.N_S, basis.search["D"][1]])
    return np.geomspace(*ends, num=2 + int(per_decade * np.log10(ends[1] / ends[0])))


def gap(basis: Basis, own: Laws, question: Question, compute_C: np.ndarray, spacing: float = FINE) -> np.ndarray:
    """Supervised loss less distilled loss [C]: above zero where the student wins, -inf where it cannot be paid."""
    distilled = optimum(basis, own, question, compute_C, spacing)
    return supervised_optimum(basis, own, compute_C, question.N_S).loss - distilled.loss


def positive(x_C: np.ndarray, y_C: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Where y is above zero, linear in log x between the points; 0 and infinity where it starts or ends so."""
    sign_C = np.concatenate([[False], y_C > 0, [False]])
    rises, falls = np.flatnonzero(~sign_C[:-1] & sign_C[1:]), np.flatnonzero(sign_C[:-1] & ~sign_C[1:])

    def root(right: int) -> float:
        left = right - 1
        share = y_C[left] / (y_C[left] - y_C[right]) if np.isfinite(y_C[[left, right]]).all() else 0.5
        return float(x_C[left] * (x_C[right] / x_C[left]) ** share)

    return tuple(
        (root(rise) if rise else 0.0, root(fall) if fall < len(y_C) else np.inf)
        for rise, fall in zip(rises, falls, strict=True)
    )


def _end(wins: tuple[tuple[float, float], ...]) -> float:
    return wins[-1][1] if wins else 0.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One scenario for the same compute; no plan where it cannot be paid, no crossover where N_S is not given."""

    scenario: Scenario
    plan: Plan | None
    crossover: Crossover | None


def compare(plan: Plan, students: int = 1) -> list[Comparison]:
    """What the same compute and the same given sizes are worth in each scenario, for one of `students` students."""
    rows = []
    for scenario in SCENARIOS:
        question = dataclasses.replace(plan.question, scenario=scenario.shared_by(students))
        paid = np.isfinite(optimum(plan.basis, plan.basis.laws, question, plan.compute).loss).all()
        crossing = crossover(plan.basis, question) if question.N_S else None
        rows.append(Comparison(scenario, allocate(plan.basis, question, plan.compute) if paid else None, crossing))
    return rows
