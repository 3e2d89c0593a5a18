"""Fitting the laws to a table of runs: robust regression in log space, many starts, bootstrap over runs, held-out error.

The procedure is that of arXiv 2502.08606v2, Appendix F: log-space form, Huber loss, the best of a grid of starts, resamples of
the runs restarted from the point fit. What few and noisy runs need is added: simpler nested laws, among which leave-one-out
error chooses, and a verdict on each parameter.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling import forms, minimise
from jaxdistill.scaling.forms import Form
from jaxdistill.scaling.identify import Parameter, parameters
from jaxdistill.scaling.laws import Distillation, Supervised, supervised
from jaxdistill.scaling.table import Table

PAPER_DELTA = 1e-4
"""Busbridge et al., for runs that scatter by 0.2 %; Hoffmann et al. take 1e-3."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to fit.

    Attributes:
      delta: log-loss residual at which the Huber loss turns from squares to absolute values. Half a percent is the scatter of
        small runs; a delta far below the scatter (`PAPER_DELTA`) makes the fit a median, which few runs cannot afford.
      starts: how many points of the grid to start from, those with the lowest objective.
      resamples: bootstrap resamples of the runs.
      seed: of the resamples.
      held_out: share of the runs, those of lowest loss, that the held-out check predicts from the others.
    """

    delta: float = 5e-3
    starts: int = 256
    resamples: int = 1000
    seed: int = 0
    held_out: float = 0.25


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A law that was tried: `left_out_error` is its mean relative error on runs left out one at a time."""

    law: str
    free: int
    objective: float
    left_out_error: float


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Runs predicted by the law fitted to the others: which [R], and predicted / measured - 1 of those, in their order."""

    held_R: np.ndarray
    relative_error: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
      kind: supervised or distilled.
      law: the form that was chosen, in words; `why` says how it was chosen.
      params: the point fit.
      parameters: each parameter with its interval, or why the runs do not identify it.
      draws: the law of each bootstrap resample, its fields arrays [K].
      runs: the runs fitted, R of them.
      L_supervised_R: for students, what the supervised law predicts for them without a teacher, else None.
      predicted_R: losses by the law.
      held_out: None if too few runs would remain.
      candidates: every law tried, simplest first.
      objective: sum of Huber losses, in squared deltas.
      converged: fraction of the starts that ended at this minimum.
      settings: how it was fitted.
    """

    kind: str
    law: str
    why: str
    params: Supervised | Distillation
    parameters: tuple[Parameter, ...]
    draws: Supervised | Distillation
    runs: Table
    L_supervised_R: np.ndarray | None
    predicted_R: np.ndarray
    held_out: HeldOut | None
    candidates: tuple[Candidate, ...]
    objective: float
    converged: float
    settings: Settings

    @property
    def relative_error_R(self) -> np.ndarray:
        """predicted / measured - 1."""
        return self.predicted_R / self.runs["loss"] - 1


@dataclasses.dataclass(frozen=True)
class NotIdentified:
    """No law can be fitted to these runs; the reason says what is missing."""

    kind: str
    reason: str


class _Point(NamedTuple):
    form: Form
    theta_P: np.ndarray
    objective: float
    converged: float
    left_out_R: np.ndarray


def fit_supervised(
    table: Table, settings: Settings = Settings(), laws: Sequence[Form] = (forms.GAMMA_ONE, forms.GAMMA_FREE)
) -> Fit:
    """Fit L(N, D) to the finished supervised runs of a table.

    Args:
      table: the runs.
      settings: how to fit.
      laws: nested laws, simplest first; one of them alone fixes the choice.

    Raises:
      InputError: too few runs, or runs whose N and D do not vary independently.
    """
    runs = table.finished("supervised")
    if lack := _too_few(runs, ("N", "D"), laws[0]) or _one_line(runs):
        raise InputError(lack)
    data = {"N": runs["N"], "D": runs["D"], "log_loss": np.log(runs["loss"])}
    return _fit("supervised", runs, data, laws, settings)


def fit_distillation(table: Table, supervised_fit: Fit, settings: Settings = Settings()) -> Fit | NotIdentified:
    """Fit L_S(N_S, D_S, L_T) to the finished distilled runs of a table, the supervised law frozen.

    Args:
      table: the runs, with the measured loss of each teacher.
      supervised_fit: gives L~_S, what each student would reach without its teacher.
      settings: how to fit.
    """
    runs = table.finished("distilled")
    L_supervised_R = supervised(supervised_fit.params, runs["N"], runs["D"])
    reach = np.max(runs["L_T"] / L_supervised_R, initial=0.0)
    laws = forms.distillation_forms(supervised_fit.params, with_c1=bool(reach >= 1.2))
    if lack := _too_few(runs, ("N", "D", "L_T"), laws[0]):
        return NotIdentified("distilled", lack)
    data = {name: runs[name] for name in ("N", "D", "L_T")} | {
        "L_supervised": L_supervised_R,
        "log_loss": np.log(runs["loss"]),
    }
    return _fit("distilled", runs, data, laws, settings)


def _fit(kind: str, runs: Table, data: Mapping[str, np.ndarray], laws: Sequence[Form], settings: Settings) -> Fit:
    laws = [law for law in laws if len(runs) >= law.free_P.sum() + 2]
    tried = [_point(form, data, settings) for form in laws]
    point, why = _choose(tried)
    form = point.form
    log_predicted_R = predict(form, point.theta_P, data)
    draws_KP = _bootstrap(point, data, settings)
    return Fit(
        kind=kind,
        law=form.name,
        why=why,
        params=_floats(form.params(point.theta_P)),
        parameters=parameters(form, point.theta_P, draws_KP, data, log_predicted_R - data["log_loss"]),
        draws=form.params(draws_KP),
        runs=runs,
        L_supervised_R=data.get("L_supervised"),
        predicted_R=np.exp(log_predicted_R),
        held_out=_hold_out(form, data, settings),
        candidates=tuple(
            Candidate(p.form.name, int(p.form.free_P.sum()), p.objective, np.abs(p.left_out_R).mean().item())
            for p in tried
        ),
        objective=point.objective,
        converged=point.converged,
        settings=settings,
    )


def predict(form: Form, theta_P: np.ndarray, data: Mapping[str, np.ndarray]) -> np.ndarray:
    """log of the predicted loss, float64 [R]."""
    return np.asarray(form.law(np.asarray(theta_P), data))


def _point(form: Form, data: Mapping[str, np.ndarray], settings: Settings) -> _Point:
    theta_P, objective, converged = _best(form, data, np.ones_like(data["log_loss"]), settings)
    runs = len(data["log_loss"])
    without = minimise.minimise(
        form.law, data, settings.delta, form.free_P, np.tile(theta_P, (runs, 1)), 1.0 - np.eye(runs)
    )
    left_out_R = np.array(
        [(predict(form, theta, data) - data["log_loss"])[r] for r, theta in enumerate(without.theta_KP)]
    )
    return _Point(form, theta_P, objective, converged, left_out_R)


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


def _choose(tried: Sequence[_Point]) -> tuple[_Point, str]:
    """The simplest law that no fuller one beats on left-out runs by more than one standard error of the difference."""
    chosen = tried[0]
    for fuller in tried[1:]:
        gain_R = np.abs(chosen.left_out_R) - np.abs(fuller.left_out_R)
        if gain_R.mean() > gain_R.std(ddof=1) / np.sqrt(len(gain_R)):
            chosen = fuller
    errors = ", ".join(
        f"{100 * np.abs(p.left_out_R).mean():.2g} % with {p.form.free_P.sum()} free parameters" for p in tried
    )
    return chosen, f"mean error on runs left out one at a time: {errors}; a fuller law must win by a standard error"


def _bootstrap(point: _Point, data: Mapping[str, np.ndarray], settings: Settings) -> np.ndarray:
    """theta_KP of resampled runs: a resample is the count of each run in it."""
    runs = len(data["log_loss"])
    count_KR = np.random.default_rng(settings.seed).multinomial(runs, np.full(runs, 1 / runs), size=settings.resamples)
    start_KP = np.tile(point.theta_P, (settings.resamples, 1))
    form = point.form
    return minimise.minimise(form.law, data, settings.delta, form.free_P, start_KP, count_KR).theta_KP


def _hold_out(form: Form, data: Mapping[str, np.ndarray], settings: Settings) -> HeldOut | None:
    runs = len(data["log_loss"])
    held = np.argsort(data["log_loss"], kind="stable")[: round(settings.held_out * runs)]
    if len(held) == 0 or runs - len(held) < form.free_P.sum() + 2:
        return None
    held_R = np.isin(np.arange(runs), held)
    theta_P, _, _ = _best(form, data, 1.0 - held_R, settings)
    return HeldOut(held_R, np.expm1(predict(form, theta_P, data) - data["log_loss"])[held_R])


def _too_few(runs: Table, design: Sequence[str], law: Form) -> str:
    needed = int(law.free_P.sum()) + 2
    distinct = len(np.unique(np.stack([runs[name] for name in design]), axis=1).T) if len(runs) else 0
    if distinct >= needed:
        return ""
    return (
        f"the law {law.name} has {needed - 2} free parameters and needs {needed} finished runs that differ in "
        f"{', '.join(design)}; the table has {distinct}"
    )


def _one_line(runs: Table) -> str:
    """Runs along one line in (log N, log D), such as equal tokens per parameter, hide one of the law's two terms."""
    design_R2 = np.stack([np.log(runs["N"]), np.log(runs["D"])], axis=1)
    spread = np.linalg.svd(design_R2 - design_R2.mean(axis=0), compute_uv=False) / np.sqrt(len(runs))
    if spread[1] > 0.05:
        return ""
    ratio = runs["D"] / runs["N"]
    what = f"the same D/N, about {np.median(ratio):.3g}" if np.std(np.log(ratio)) < 0.1 else "N and D on one line"
    return (
        f"all {len(runs)} runs have {what}, which cannot tell the parameter term from the data term; add an IsoFLOP profile, "
        "or several token counts at one size"
    )


def _floats(law: Supervised | Distillation) -> Supervised | Distillation:
    return type(law)(*(float(getattr(law, field.name)) for field in dataclasses.fields(law)))
