"""Fitting the laws to a table of runs: what goes in, what comes out, and in which order it is found.

The procedure is that of arXiv 2502.08606v2, Appendix F: log-space form, Huber loss, the best of a grid of starts,
resamples of the runs restarted from the point fit. What few and noisy runs need is added: simpler nested laws, among
which leave-one-out error chooses, and a verdict on each parameter.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling import forms
from jaxdistill.scaling.design import mixed, one_line, too_few
from jaxdistill.scaling.forms import Form
from jaxdistill.scaling.identify import Parameter, noise, parameters
from jaxdistill.scaling.laws import Distillation, Supervised, distillation, supervised
from jaxdistill.scaling.regression import DEFAULT, HeldOut, Settings, bootstrap, choose, hold_out, point, predict
from jaxdistill.scaling.table import KINDS, Table


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A law that was tried: `left_out_error` is its mean relative error on runs left out one at a time."""

    law: str
    free: int
    objective: float
    left_out_error: float


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
      alone: for students, the supervised law that was frozen under the fit, else None.
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
    params: Any
    parameters: tuple[Parameter, ...]
    draws: Supervised | Distillation
    runs: Table
    alone: Supervised | None
    predicted_R: np.ndarray
    held_out: HeldOut | None
    candidates: tuple[Candidate, ...]
    objective: float
    converged: float
    settings: Settings

    def predict(self, N: Any, D: Any, L_T: Any = None) -> Any:
        """Loss by the point fit, nats per token; `L_T` is the teacher's, which a supervised law does not look at."""
        if self.alone is None:
            return supervised(self.params, N, D)
        return distillation(self.params, N, D, L_T, supervised(self.alone, N, D))

    @property
    def noise(self) -> float:
        """Standard deviation of a log loss about the law."""
        free = sum(not parameter.held for parameter in self.parameters if parameter.symbol != "a")
        return noise(np.log1p(self.relative_error_R), free)

    @property
    def relative_error_R(self) -> np.ndarray:
        """predicted / measured - 1."""
        return self.predicted_R / self.runs["loss"] - 1


@dataclasses.dataclass(frozen=True)
class NotIdentified:
    """No law can be fitted to these runs; the reason says what is missing."""

    kind: str
    reason: str


def fit_supervised(
    table: Table, settings: Settings = DEFAULT, laws: Sequence[Form] = (forms.GAMMA_ONE, forms.GAMMA_FREE)
) -> Fit:
    """Fit L(N, D) to the finished supervised runs of a table.

    Args:
      table: the runs.
      settings: how to fit.
      laws: nested laws, simplest first; one of them alone fixes the choice.

    Raises:
      InputError: too few runs, runs whose N and D do not vary independently, or finished runs, of either kind, of
        several tokenizers or validation texts.
    """
    runs = table.finished("supervised")
    if lack := mixed(table.finished(*KINDS)) or too_few(runs, ("N", "D"), laws[0]) or one_line(runs):
        raise InputError(lack)
    data = {"N": runs["N"], "D": runs["D"], "log_loss": np.log(runs["loss"])}
    return _fit("supervised", runs, data, laws, settings, alone=None)


def fit_distillation(table: Table, alone: Fit | Supervised, settings: Settings = DEFAULT) -> Fit | NotIdentified:
    """Fit L_S(N_S, D_S, L_T) to the finished distilled runs of a table, the supervised law frozen.

    Args:
      table: the runs, with the measured loss of each teacher.
      alone: the supervised law, or its fit: L~_S, what each student would reach without its teacher.
      settings: how to fit.

    Raises:
      InputError: finished runs, of either kind, of several tokenizers or validation texts.
    """
    if mixture := mixed(table.finished(*KINDS)):
        raise InputError(mixture)
    runs = table.finished("distilled")
    law = alone.params if isinstance(alone, Fit) else alone
    L_supervised_R = supervised(law, runs["N"], runs["D"])
    reach = np.max(runs["L_T"] / L_supervised_R, initial=0.0)
    laws = forms.distillation_forms(law, with_c1=bool(reach >= 1.2))
    if lack := too_few(runs, ("N", "D", "L_T"), laws[0]):
        return NotIdentified("distilled", lack)
    data = {name: runs[name] for name in ("N", "D", "L_T")} | {
        "L_supervised": L_supervised_R,
        "log_loss": np.log(runs["loss"]),
    }
    return _fit("distilled", runs, data, laws, settings, law)


def _fit(
    kind: str,
    runs: Table,
    data: Mapping[str, np.ndarray],
    laws: Sequence[Form],
    settings: Settings,
    alone: Supervised | None,
) -> Fit:
    fuller = [law for law in laws[1:] if len(runs) >= 2 * law.free_P.sum()]  # with fewer runs it fits the noise
    tried = [point(form, data, settings) for form in (laws[0], *fuller)]
    best, why = choose(tried)
    form = best.form
    log_predicted_R = predict(form, best.theta_P, data)
    draws_KP = bootstrap(best, data, settings)
    return Fit(
        kind=kind,
        law=form.name,
        why=why,
        params=_floats(form.params(best.theta_P)),
        parameters=parameters(form, best.theta_P, draws_KP, data, log_predicted_R - data["log_loss"]),
        draws=form.params(draws_KP),
        runs=runs,
        alone=alone,
        predicted_R=np.exp(log_predicted_R),
        held_out=hold_out(form, data, settings),
        candidates=tuple(
            Candidate(p.form.name, int(p.form.free_P.sum()), p.objective, np.abs(p.left_out_R).mean().item())
            for p in tried
        ),
        objective=best.objective,
        converged=best.converged,
        settings=settings,
    )


def _floats(law: Supervised | Distillation) -> Supervised | Distillation:
    return type(law)(*(float(getattr(law, field.name)) for field in dataclasses.fields(law)))
