"""Where the compute of a distillation project should go: the optimum under a law, and when to leave the teacher out.

The problem is Eq. 10 of Busbridge et al. (arXiv 2502.08606v2): the lowest L_S over student tokens and teacher for given
FLOPs. The budget fixes D_S, so the search runs over log10 of N_S, N_T and D_T, or those of them that are not given.
Arrays end in K, one problem for each law or budget, in G, points of the search, and in X, its coordinates.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling import laws, search
from jaxdistill.scaling.basis import Basis, Laws
from jaxdistill.scaling.scenarios import Scenario

FINE, COARSE = 0.25, 0.5  # decades between grid points, for one plan and for many


@dataclasses.dataclass(frozen=True)
class Question:
    """What is to be allocated: parameters and tokens that are given; None is searched."""

    scenario: Scenario
    N_S: float | None = None
    N_T: float | None = None
    D_T: float | None = None

    @property
    def frontier(self) -> bool:
        """Whether the best teacher is compute-optimal: it is the cheapest of its loss, and its size costs no more.

        Where nothing of the teacher is paid for, any of that loss would do, and this one is named.
        """
        return self.scenario.delta_logits == 0 and self.N_T is None and self.D_T is None


class Allocation(NamedTuple):
    """A way to spend the compute; N parameters, D tokens, losses in nats per token, float64 arrays of one shape."""

    N_S: Any
    D_S: Any
    N_T: Any
    D_T: Any
    L_T: Any
    loss: Any


class Alone(NamedTuple):
    """The supervised model of the same compute."""

    N: Any
    D: Any
    loss: Any


class Estimate(NamedTuple):
    """A value by the point fit, and the 5th and 95th percentile over the draws."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """The answer.

    Attributes:
      basis, question, compute: what was asked; `compute` in FLOPs.
      allocation: the optimum. Its intervals say where the optima of the draws lie; that of the loss says what this very
        allocation reaches under each draw.
      alone: the supervised model of the same compute and, where it was given, the same size.
      gain: loss of the supervised model less that of the student.
      shares: of the FLOPs in student training, teacher logits and teacher training.
      notes: optima at the edge of the search, numbers outside the runs of the law.
    """

    basis: Basis
    question: Question
    compute: float
    allocation: Allocation
    alone: Alone
    gain: Estimate
    shares: tuple[float, float, float]
    notes: tuple[str, ...]


def allocate(basis: Basis, question: Question, compute: float) -> Plan:
    """The allocation of `compute` FLOPs that the law expects to give the best student.

    Raises:
      InputError: the compute does not pay for a single token of the student.
    """
    best = optimum(basis, basis.laws, question, compute)
    if not np.isfinite(best.loss).all():
        raise InputError(
            f"{compute:.3g} FLOPs do not pay for one token of the student in the scenario {question.scenario.name}; "
            "give more compute, smaller models or fewer teacher tokens"
        )
    value = Allocation(*(float(field[0]) for field in best))
    alone = Alone(*(float(field[0]) for field in supervised_optimum(basis, basis.laws, compute, question.N_S)))
    drawn = optimum(basis, basis.draws, question, compute, COARSE)
    drawn_alone = supervised_optimum(basis, basis.draws, compute, question.N_S)
    loss_K = basis.draws.student(value.N_S, value.D_S, basis.draws.alone(value.N_T, value.D_T))
    alone_K = basis.draws.alone(alone.N, alone.D)
    return Plan(
        basis,
        question,
        compute,
        Allocation(*(estimate(v, k) for v, k in zip(value, drawn._replace(loss=loss_K), strict=True))),
        Alone(*(estimate(v, k) for v, k in zip(alone, drawn_alone._replace(loss=alone_K), strict=True))),
        estimate(alone.loss - value.loss, alone_K - loss_K),
        question.scenario.shares(basis.cost(value.N_S), value.D_S, basis.cost(value.N_T), value.D_T),
        (*edges(basis, question, value), *outside(basis, value)),
    )


def optimum(basis: Basis, own: Laws, question: Question, compute: Any, spacing: float = FINE) -> Allocation:
    """The best allocation under each of K laws or budgets, arrays [K]; its loss is infinite where none is affordable.

    Args:
      basis: costs and limits.
      own: laws, fields floats or [K].
      question: what is given.
      compute: FLOPs, a float or [K].
      spacing: of the grid, in decades.
    """
    laws_K1, compute_K1 = jax.tree.map(lambda field: np.asarray(field, np.float64)[..., None], (own, compute))

    def at(x_KGX: np.ndarray) -> Allocation:
        return _spend(basis, laws_K1, question, compute_K1, x_KGX)

    given = (question.N_S, question.N_T, basis.search["D"][0] if question.frontier else question.D_T)
    limits = (basis.search["N"], basis.search["N"], basis.search["D"])
    box = [np.log10(limit if size is None else (size, size)) for size, limit in zip(given, limits, strict=True)]
    x_KX = search.grid(lambda x: at(x).loss, box, spacing)
    if question.N_T or question.frontier:
        x_KX = search.descend(lambda x: at(x).loss, x_KX, box, spacing)
    else:
        law, box[1] = laws_K1.supervised, np.array([-np.inf, box[1][1]])
        start_KX = _with_N_inf(law, x_KX[:, None])[:, 0]
        end_KX = search.descend(lambda x: at(_with_N_T(law, x)).loss, start_KX, box, spacing)
        x_KX = _with_N_T(law, end_KX[:, None])[:, 0]
    return Allocation(*(np.broadcast_to(field, (len(x_KX), 1))[:, 0] for field in at(x_KX[:, None])))


def _spend(basis: Basis, own: Laws, question: Question, compute: Any, x_KGX: np.ndarray) -> Allocation:
    """The allocations at log10 of (N_S, N_T, D_T), arrays [K, G]; infinite loss where they cannot be."""
    sizes = zip((question.N_S, question.N_T, question.D_T), 10.0 ** np.moveaxis(x_KGX, -1, 0), strict=True)
    N_S, N_T, D_T = (np.full_like(searched, searched if given is None else given) for given, searched in sizes)
    if question.frontier:
        D_T = laws.optimal_tokens(own.supervised, N_T, basis.cost.elasticity(N_T))
    with np.errstate(invalid="ignore"):  # an infinite teacher that costs nothing
        D_S = question.scenario.student_tokens(compute, basis.cost(N_S), basis.cost(N_T), D_T)
    largest = question.N_T or basis.search["N"][1] * 1.0001  # rounding of the logarithm
    allowed = (D_S >= 1) & (largest >= N_T)
    L_T = own.alone(N_T, D_T)
    loss = np.where(allowed, own.student(N_S, np.where(allowed, D_S, 1.0), L_T), np.inf)
    return Allocation(N_S, D_S, N_T, D_T, L_T, loss)


def _with_N_inf(law: laws.Supervised, x_KGX: np.ndarray) -> np.ndarray:
    """The same points with N_T replaced by N_inf, the size that reaches the teacher's loss with infinite data.

    The student's loss depends strongly on N_inf and, along it, only weakly on D_T. Over (N_T, D_T) that is a narrow,
    bent valley, in which a search creeps.
    """
    N_S, N_T, D_T = np.moveaxis(x_KGX, -1, 0)
    both = 10.0 ** (-law.alpha * N_T) + law.B / law.A * 10.0 ** (-law.beta * D_T)
    return np.stack(np.broadcast_arrays(N_S, np.log10(both) / -law.alpha, D_T), axis=-1)


def _with_N_T(law: laws.Supervised, x_KGX: np.ndarray) -> np.ndarray:
    """The inverse: A / N_T^alpha = A / N_inf^alpha - B / D_T^beta; infinite where too few tokens can never reach it."""
    N_S, N_inf, D_T = np.moveaxis(x_KGX, -1, 0)
    left = 10.0 ** (-law.alpha * N_inf) - law.B / law.A * 10.0 ** (-law.beta * D_T)
    with np.errstate(divide="ignore"):
        N_T = np.log10(np.maximum(left, 0.0)) / -law.alpha
    return np.stack(np.broadcast_arrays(N_S, N_T, D_T), axis=-1)


def supervised_optimum(basis: Basis, own: Laws, compute: Any, N: float | None = None) -> Alone:
    """The supervised model of `compute` FLOPs, of the best size unless `N` is given; arrays [K] as in `optimum`."""
    laws_K1, compute_K1 = jax.tree.map(lambda field: np.asarray(field, np.float64)[..., None], (own, compute))

    def at(x_KGX: np.ndarray) -> Alone:
        N = 10.0 ** x_KGX[..., 0]
        D = compute_K1 / (3 * basis.cost(N))
        return Alone(N, D, laws_K1.alone(N, D))

    box = [np.log10((N, N) if N else basis.search["N"])]
    x_KX = search.descend(lambda x: at(x).loss, search.grid(lambda x: at(x).loss, box, FINE), box, FINE)
    return Alone(*(np.broadcast_to(field, (len(x_KX), 1))[:, 0] for field in at(x_KX[:, None])))


def estimate(value: float, draws_K: np.ndarray) -> Estimate:
    """The value with its 90 % interval; the nearest draws are its ends, so that an end may be infinite."""
    low, high = np.percentile(draws_K, [5, 95], method="nearest")
    return Estimate(value, float(low), float(high))


# ---------------------------------------------------------------------------------------------------------------------
# What to doubt

WORDS = {"N_S": "student parameters", "D_S": "student tokens", "N_T": "teacher parameters", "D_T": "teacher tokens"}


def edges(basis: Basis, question: Question, found: Allocation) -> list[str]:
    """Optima that lie on the edge of the search, in sentences."""
    said = []
    for name in ("N_S", "N_T", "D_T"):
        low, high = basis.search[name[0]]
        value = getattr(found, name)
        if getattr(question, name) is None and not low * 1.001 < value < high / 1.001:
            side = "smallest" if value < high / 2 else "largest"
            said.append(
                f"The best number of {WORDS[name]} is the {side} of the search, {value:.3g}: the law sees no optimum "
                "before it, so give the number you can have."
            )
    return said


def outside(basis: Basis, found: Allocation) -> list[str]:
    """Numbers outside the runs of the law, in one sentence."""
    said = [
        f"{words} {getattr(found, name):.3g} (the runs have {low:.3g} to {high:.3g})"
        for name, words in {**WORDS, "L_T": "teacher loss"}.items()
        for low, high in [basis.runs["L_T" if name == "L_T" else name[0]]]
        if not low <= getattr(found, name) <= high
    ]
    return [f"Extrapolated beyond the runs of the law: {'; '.join(said)}."] if said else []
