"""Which runs to make next: those that narrow a stated quantity most for their FLOPs.

The draws of a bootstrap say how the quantity and the losses of runs not made yet vary together. Taken as jointly
normal, a run y of noise s lowers the variance of the quantity t by Cov(t, y)^2 / (Var(y) + s^2): Bayesian c-optimal
design (Chaloner and Verdinelli 1995), exact where the law is linear in parameters that are normal. Arrays end in K
(draws) or C (runs that could be made).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling.basis import Laws
from jaxdistill.scaling.identify import ADDITIVE, NORMAL_90, symbols

FAR = 4.0  # robust standard deviations beyond which a draw counts as if it lay there: a few wild ones decide nothing


class Target(NamedTuple):
    """What is to be known better.

    Attributes:
      name: for people.
      value: by the point fit, in its own unit.
      draws_K: the same under each draw; logarithms, unless `additive`.
      additive: whether it can be negative.
    """

    name: str
    value: float
    draws_K: np.ndarray
    additive: bool = False

    def interval(self, deviation: float) -> tuple[float, float]:
        """Ends of the 90 % interval at a standard deviation of `draws_K`."""
        reach = NORMAL_90 * deviation
        if self.additive:
            return self.value - reach, self.value + reach
        return self.value * float(np.exp(-reach)), self.value * float(np.exp(reach))


class Step(NamedTuple):
    """One choice: the run, last after those that it needs first, their FLOPs, and the deviation of the target after."""

    runs: tuple[int, ...]
    flops: float
    deviation: float


class Plan(NamedTuple):
    """The choices in their order, and the deviation of the target before any."""

    target: Target
    deviation: float
    steps: tuple[Step, ...]


def target(text: str, point: Laws, draws: Laws) -> Target:
    """`E`, `kappa` and their like, or a loss at `N:D` without a teacher, or at `N:D:L_T` with one.

    Raises:
      InputError: none of these, or a parameter that the fit held.
    """
    from jaxdistill.scaling.recipe import number

    if ":" in text:
        numbers = [number(part, f"a number of the target {text}") for part in text.split(":")]
        if len(numbers) not in (2, 3):
            raise InputError(f"the target {text!r} is no loss; write N:D or, of a student, N:D:L_T, such as 1M:20M:2.1")
        of = draws.student if len(numbers) == 3 else draws.alone
        value = (point.student if len(numbers) == 3 else point.alone)(*numbers)
        return Target(f"the loss at {text}", float(value), np.log(of(*numbers)))
    values, drawn = (symbols(laws.supervised) | symbols(laws.distillation) for laws in (point, draws))
    if text not in values:
        raise InputError(f"there is no target {text!r}; give a loss as N:D or N:D:L_T, or one of {', '.join(values)}")
    draws_K = np.asarray(drawn[text], np.float64)
    if draws_K.ndim == 0 or np.ptp(draws_K) == 0 or not np.isfinite(values[text]):
        raise InputError(f"the fit of these runs holds {text}, so no run can tell it better; choose another target")
    additive = text in ADDITIVE
    return Target(text, float(values[text]), draws_K if additive else np.log(draws_K), additive)


def choose(
    wanted: Target,
    log_loss_KC: np.ndarray,
    noise_C: np.ndarray,
    flops_C: np.ndarray,
    needs: Sequence[tuple[int, ...]],
    number: int,
    compute: float = np.inf,
) -> Plan:
    """Greedily the runs whose expected reduction of the target's variance per FLOP is largest.

    Args:
      wanted: the target.
      log_loss_KC: log of the loss that each draw foretells for each run.
      noise_C: standard deviation of a measured log loss about the law.
      flops_C: what each run costs.
      needs: runs that each one cannot be made without (its teacher): they are measured and paid for with it, once.
      number: of choices, at most.
      compute: FLOPs of all of them together.
    """
    covariance = _covariance(np.column_stack([wanted.draws_K, log_loss_KC]))
    before, made, steps, left = covariance[0, 0], set[int](), list[Step](), compute
    for _ in range(number):
        groups = {c: (*(n for n in needs[c] if n not in made), c) for c in range(len(flops_C)) if c not in made}
        costs = {c: float(flops_C[list(group)].sum()) for c, group in groups.items()}
        rates = {c: _gain(covariance, noise_C, groups[c]) / costs[c] for c in groups if costs[c] <= left}
        if not rates:
            break
        best = max(rates, key=lambda c: rates[c])
        covariance = _conditioned(covariance, noise_C, groups[best])
        made |= set(groups[best])
        left -= costs[best]
        steps.append(Step(groups[best], costs[best], float(np.sqrt(max(covariance[0, 0], 0.0)))))
    return Plan(wanted, float(np.sqrt(before)), tuple(steps))


def _covariance(columns_KC: np.ndarray) -> np.ndarray:
    """Of the columns, each drawn in to FAR robust deviations from its median."""
    columns_KC = columns_KC[np.isfinite(columns_KC).all(axis=1)]
    middle_C = np.median(columns_KC, axis=0)
    reach_C = FAR * 1.4826 * np.median(np.abs(columns_KC - middle_C), axis=0)
    return np.atleast_2d(np.cov(np.clip(columns_KC, middle_C - reach_C, middle_C + reach_C), rowvar=False))


def _inverse(covariance: np.ndarray, noise_C: np.ndarray, group: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(places of the runs beside the target, inverse covariance of what would be measured of them)."""
    place = 1 + np.array(group)
    return place, np.linalg.inv(covariance[np.ix_(place, place)] + np.diag(noise_C[list(group)] ** 2))


def _gain(covariance: np.ndarray, noise_C: np.ndarray, group: tuple[int, ...]) -> float:
    place, inverse = _inverse(covariance, noise_C, group)
    return float(covariance[0, place] @ inverse @ covariance[place, 0])


def _conditioned(covariance: np.ndarray, noise_C: np.ndarray, group: tuple[int, ...]) -> np.ndarray:
    """The covariance after the runs of a group are measured."""
    place, inverse = _inverse(covariance, noise_C, group)
    return covariance - covariance[:, place] @ inverse @ covariance[place]
