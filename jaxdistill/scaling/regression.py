"""One robust regression under many weightings of the runs: point fit, leave-one-out, bootstrap, held-out check.

A run that is left out weighs zero, a bootstrap resample weighs each run by its count: all go to the same optimiser.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling import minimise
from jaxdistill.scaling.forms import Form

PAPER_DELTA = 1e-4
"""Busbridge et al., for runs that scatter by 0.2 %; Hoffmann et al. take 1e-3."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to fit.

    Attributes:
      delta: log-loss residual at which the Huber loss turns from squares to absolute values. Half a percent is the
        scatter of small runs; a delta far below the scatter (`PAPER_DELTA`) makes the fit a median, which few runs
        cannot afford.
      starts: how many points of the grid to start from, those with the lowest objective.
      resamples: bootstrap resamples of the runs.
      seed: of the resamples.
      held_out: share of the runs, those of lowest loss, that the held-out check predicts from the others.
    """

    delta: float = 5e-3
    starts: int = 128
    resamples: int = 1000
    seed: int = 0
    held_out: float = 0.25

    def __post_init__(self):
        if not (self.delta > 0 and self.starts >= 1 and self.resamples >= 1 and 0 <= self.held_out < 1):
            raise InputError(f"{self} cannot be: delta, starts and resamples are positive, held_out is below 1")


DEFAULT = Settings()


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Runs predicted by the law fitted to the others: which [R], and predicted / measured - 1 of those."""

    held_R: np.ndarray
    relative_error: np.ndarray


class Point(NamedTuple):
    """The point fit of one form: coordinates, objective, share of starts that reached it, left-out residuals [R]."""

    form: Form
    theta_P: np.ndarray
    objective: float
    converged: float
    left_out_R: np.ndarray


def predict(form: Form, theta_P: np.ndarray, data: Mapping[str, np.ndarray]) -> np.ndarray:
    """log of the predicted loss, float64 [R]."""
    return np.asarray(form.law(np.asarray(theta_P), data))


def point(form: Form, data: Mapping[str, np.ndarray], settings: Settings) -> Point:
    """The best of many starts, and the residual of each run under the law refitted without it."""
    theta_P, objective, converged = _best(form, data, np.ones_like(data["log_loss"]), settings)
    runs = len(data["log_loss"])
    without = minimise.minimise(
        form.law, data, settings.delta, form.free_P, np.tile(theta_P, (runs, 1)), 1.0 - np.eye(runs)
    )
    left_out_R = np.array(
        [(predict(form, theta, data) - data["log_loss"])[r] for r, theta in enumerate(without.theta_KP)]
    )
    return Point(form, theta_P, objective, converged, left_out_R)


def _best(form: Form, data: Mapping[str, np.ndarray], weight_R: np.ndarray, settings: Settings):
    """(theta_P, objective, share of the starts that reached it), from the lowest points of the grid."""
    grid_KP = form.starts()
    lowest = np.argsort(minimise.values(form.law, data, settings.delta, grid_KP), kind="stable")[: settings.starts]
    ends = minimise.minimise(
        form.law, data, settings.delta, form.free_P, grid_KP[lowest], np.tile(weight_R, (len(lowest), 1))
    )
    best = np.nanargmin(ends.value_K)
    objective = ends.value_K[best].item()
    return ends.theta_KP[best], objective, np.mean(ends.value_K <= objective + 1e-6 * max(objective, 1.0)).item()


def choose(tried: Sequence[Point]) -> tuple[Point, str]:
    """The simplest law, unless a fuller one errs less on left-out runs: by a standard error and by 1 % of it."""
    chosen = tried[0]
    for fuller in tried[1:]:
        error_R = np.abs(chosen.left_out_R)
        gain_R = error_R - np.abs(fuller.left_out_R)
        if gain_R.mean() > max(gain_R.std(ddof=1) / np.sqrt(len(gain_R)), 0.01 * error_R.mean()):
            chosen = fuller
    errors = "; ".join(f"{_percent(p.left_out_R)} with {p.form.free_P.sum()} free parameters" for p in tried)
    return (
        chosen,
        f"mean error on runs left out one at a time is {errors}, and a fuller law must win by a standard error",
    )


def _percent(error_R: np.ndarray) -> str:
    return f"{100 * np.abs(error_R).mean():.2g} %"


def bootstrap(fitted: Point, data: Mapping[str, np.ndarray], settings: Settings) -> np.ndarray:
    """theta_KP of resampled runs, each restarted from the point fit; a resample is the count of each run in it."""
    runs, form = len(data["log_loss"]), fitted.form
    count_KR = np.random.default_rng(settings.seed).multinomial(runs, np.full(runs, 1 / runs), size=settings.resamples)
    start_KP = np.tile(fitted.theta_P, (settings.resamples, 1))
    return minimise.minimise(form.law, data, settings.delta, form.free_P, start_KP, count_KR).theta_KP


def hold_out(form: Form, data: Mapping[str, np.ndarray], settings: Settings) -> HeldOut | None:
    """The runs of lowest loss predicted from the others, from new starts; None if too few others would remain."""
    runs = len(data["log_loss"])
    held = np.argsort(data["log_loss"], kind="stable")[: round(settings.held_out * runs)]
    if len(held) == 0 or runs - len(held) < form.free_P.sum() + 2:
        return None
    held_R = np.isin(np.arange(runs), held)
    theta_P, _, _ = _best(form, data, 1.0 - held_R, settings)
    return HeldOut(held_R, np.expm1(predict(form, theta_P, data) - data["log_loss"])[held_R])
