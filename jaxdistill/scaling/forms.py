"""The laws in the coordinates they are fitted in, and their nested simpler forms.

Everything positive is fitted as its logarithm, in which the laws are nearly linear and no bound is needed. A nested
law is the full law with some coordinates held, so that one compiled optimiser serves the whole family.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdistill.scaling.laws import Distillation, Supervised, log_distillation, log_supervised

SUPERVISED = ("log A", "log B", "log E", "log alpha", "log beta", "log gamma")
DISTILLATION = ("log A'", "log B'/A'", "log alpha'", "log beta'", "log gamma'", "c0", "log kappa", "log f1", "log c1")

# The published grids (arXiv 2502.08606v2, F.1 and F.2), with zero exponents, where the law is flat, moved to 0.1. The
# gate's grid is ours: kappa and f1 replace c1, d1 and f1.
_EXPONENTS = np.log([0.1, 0.5, 1.0])
SUPERVISED_GRID: Mapping[str, np.ndarray] = {
    "log A": np.arange(0.0, 21.0, 5.0),
    "log B": np.arange(0.0, 21.0, 5.0),
    "log E": np.arange(-1.0, 1.6, 0.5),
    "log alpha": np.append(_EXPONENTS, np.log(1.5)),
    "log beta": np.append(_EXPONENTS, np.log(1.5)),
    "log gamma": np.append(_EXPONENTS, np.log(1.5)),
}
DISTILLATION_GRID: Mapping[str, np.ndarray] = {
    "log A'": np.arange(0.0, 21.0, 5.0),
    "log B'/A'": np.arange(-5.0, 11.0, 5.0),
    "log alpha'": _EXPONENTS,
    "log beta'": _EXPONENTS,
    "log gamma'": _EXPONENTS,
    "c0": np.array([0.0, 1.0, 3.0]),
    "log kappa": np.log([0.3, 1.0, 3.0]),
    "log f1": np.log([0.05, 0.1, 0.3, 1.0]),
    "log c1": np.log([1.0, 10.0, 100.0]),
}


@dataclasses.dataclass(frozen=True)
class Form:
    """A law to fit: which coordinates are free, and the values of those that are held.

    Attributes:
      name: in words, for people.
      law: theta_P and the columns of the data -> log loss [R].
      coordinates: names of theta_P.
      grid: starting values of each coordinate.
      held: coordinates that do not move.
      params: theta [..., P] -> the law with its fields in natural units.
    """

    name: str
    law: Callable
    coordinates: tuple[str, ...]
    grid: Mapping[str, np.ndarray]
    held: Mapping[str, float]
    params: Callable

    @property
    def free_P(self) -> np.ndarray:
        return np.array([name not in self.held for name in self.coordinates])

    def starts(self) -> np.ndarray:
        """Every point of the grid, [K, P]; held coordinates stand at their value."""
        axes = [[self.held[name]] if name in self.held else self.grid[name] for name in self.coordinates]
        return np.array(list(itertools.product(*axes)))


def supervised_params(theta) -> Supervised:
    """theta [..., P] in the order of `SUPERVISED` -> the law."""
    xp: Any = np if isinstance(theta, np.ndarray) else jnp
    A, B, E, alpha, beta, gamma = xp.moveaxis(xp.exp(theta), -1, 0)
    return Supervised(A, B, E, alpha, beta, gamma)


def distillation_params(theta) -> Distillation:
    """theta [..., P] in the order of `DISTILLATION` -> the law."""
    xp: Any = np if isinstance(theta, np.ndarray) else jnp
    with np.errstate(over="ignore"):  # an infinite c1 is a law too
        A, ratio, alpha, beta, gamma, _, kappa, f1, c1 = xp.moveaxis(xp.exp(theta), -1, 0)
    return Distillation(A, A * ratio, alpha, beta, gamma, c0=theta[..., 5], kappa=kappa, f1=f1, c1=c1)


def supervised_law(theta_P, data):
    return log_supervised(supervised_params(theta_P), data["N"], data["D"])


def distillation_law(theta_P, data):
    return log_distillation(distillation_params(theta_P), data["N"], data["D"], data["L_T"], data["L_supervised"])


def _supervised(name: str, held: Mapping[str, float]) -> Form:
    return Form(name, supervised_law, SUPERVISED, SUPERVISED_GRID, held, supervised_params)


def _distillation(name: str, held: Mapping[str, float]) -> Form:
    return Form(name, distillation_law, DISTILLATION, DISTILLATION_GRID, held, distillation_params)


GAMMA_ONE = _supervised("E + A/N^alpha + B/D^beta (Hoffmann et al.)", {"log gamma": 0.0})
GAMMA_FREE = _supervised("E + (A/N^alpha + B/D^beta)^gamma (Busbridge et al.)", {})


def distillation_forms(law: Supervised, with_c1: bool) -> tuple[Form, ...]:
    """Distillation laws from the simplest to the fullest.

    The simple ones take the shape of the student's own term from the supervised law: its exponents and B/A are held,
    so that the term is proportional to L~_S - E, and only the teacher's part of the law is fitted.

    Args:
      law: the frozen supervised law.
      with_c1: whether teachers reach the break of the gate (L_T >= 1.2 L~_S); without it c1 and d1 cannot be told
        apart.
    """
    exponential = {"log c1": math.inf}
    own_exponents = {"log alpha'": "alpha", "log beta'": "beta", "log gamma'": "gamma"}
    shape = {name: math.log(getattr(law, field)) for name, field in own_exponents.items()}
    shape["log B'/A'"] = math.log(law.B / law.A)
    forms = (
        _distillation("L_T + k·g(L_T/L~_S)·(L~_S - E)", exponential | shape | {"c0": 0.0}),
        _distillation("L_T + k·L_T^-c0·g(L_T/L~_S)·(L~_S - E)", exponential | shape),
        _distillation("L_T + L_T^-c0·g(L_T/L~_S)·(A'/N^alpha' + B'/D^beta')", exponential | {"log gamma'": 0.0}),
        _distillation("L_T + L_T^-c0·g(L_T/L~_S)·(A'/N^alpha' + B'/D^beta')^gamma', g exponential", exponential),
    )
    full = _distillation("L_T + L_T^-c0·g(L_T/L~_S)·(A'/N^alpha' + B'/D^beta')^gamma' (Busbridge et al.)", {})
    return (*forms, full) if with_c1 else forms
