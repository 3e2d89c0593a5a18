"""Figures of a sweep, each a function of a fit that returns a matplotlib Figure."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling.fit import Fit
from jaxdistill.scaling.laws import supervised
from jaxdistill.scaling.style import (
    COLOURS,
    FAINT,
    INK,
    canvas,
    count,
    in_style,
    plain_log_ticks,
    scientific,
    styles,
)
from jaxdistill.scaling.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def has_isoflop(fit: Fit) -> bool:
    """Whether `isoflop` has anything to draw."""
    return any(True for _, runs in _by_teacher(fit) for _ in _profiles(runs))


@in_style
def isoflop(fit: Fit) -> "Figure":
    """Loss against model size at each compute budget: measured, by the law, and the law's minimum; a panel a teacher.

    A budget is a protocol whose name starts with `isoflop`. What a token costs at sizes between the runs is
    interpolated from the runs' own FLOPs.

    Raises:
      InputError: the table has no IsoFLOP profile of at least three sizes, or matplotlib is missing.
    """
    groups = [(teacher, list(_profiles(runs))) for teacher, runs in _by_teacher(fit)]
    groups = [(teacher, profiles) for teacher, profiles in groups if profiles]
    if not groups:
        raise InputError(
            "an IsoFLOP figure needs a protocol `isoflop ...` of runs of at least three sizes under one teacher or "
            "without any, with FLOPs"
        )
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    size = (6.4, 4.2) if len(groups) == 1 else (3.2 * columns + 0.4, 2.9 * rows + 0.5)
    figure, axes = canvas(*size, rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, (teacher, profiles) in zip(axes.flat, groups, strict=False):
        for (budget, runs), (colour, marker) in zip(profiles, styles(len(profiles)), strict=True):
            _profile(panel, fit, budget, runs, colour, marker)
        panel.plot([], [], "o", color=FAINT, markersize=10, markerfacecolor="none", label="minimum of the law")
        panel.set(xscale="log", title=teacher)
        panel.legend(title="training compute", alignment="left")
        plain_log_ticks(panel.xaxis)
    for panel in axes.flat[len(groups) :]:
        panel.remove()
    figure.supxlabel("model size N (non-embedding parameters)")
    figure.supylabel("validation loss (nats per token)")
    return figure


def _profile(panel: Any, fit: Fit, budget: float, runs: Table, colour: str, marker: str) -> None:
    """Runs of one budget, the law through them, and a ring at its minimum."""
    N = np.geomspace(runs["N"].min() / 1.5, runs["N"].max() * 1.5, 200)
    loss = fit.predict(N, budget / (3 * _forward_flops(fit.runs, N)), runs["L_T"].mean())
    best = np.argmin(loss)
    panel.plot(N, loss, color=colour, zorder=1)
    if 0 < best < len(N) - 1:
        panel.plot(N[best], loss[best], "o", color=colour, markersize=12, markerfacecolor="none", zorder=2)
    measured = {"markeredgecolor": "white", "label": f"{scientific(budget)} FLOPs"}
    panel.plot(runs["N"], runs["loss"], marker, color=colour, **measured)


@in_style
def agreement(fit: Fit) -> "Figure":
    """Measured against predicted loss, with relative residuals below; open marks are predictions of held-out runs.

    Raises:
      InputError: matplotlib is missing.
    """
    figure, (above, below) = canvas(5.2, 5.6, rows=2, sharex=True, height_ratios=(3, 1.3))
    measured, colour = fit.runs["loss"], COLOURS[0] if fit.kind == "supervised" else COLOURS[1]
    ends = np.array([measured.min(), measured.max()]) * [0.97, 1.03]
    above.plot(ends, ends, color=FAINT, linewidth=1, zorder=0)
    below.axhline(0, color=FAINT, linewidth=1, zorder=0)
    solid = {"color": colour, "markeredgecolor": "white", "label": "fitted to all runs"}
    above.plot(measured, fit.predicted_R, "o", **solid)
    below.plot(measured, 100 * fit.relative_error_R, "o", **solid)
    if fit.held_out is not None:
        held, error = measured[fit.held_out.held_R], fit.held_out.relative_error
        hollow = {
            "markerfacecolor": "none",
            "markeredgecolor": INK,
            "markersize": 8,
            "label": "predicted without seeing it",
        }
        above.plot(held, held * (1 + error), "o", **hollow)
        below.plot(held, 100 * error, "o", **hollow)
    above.set(ylabel="loss by the law (nats per token)", xlim=ends)
    below.set(xlabel="measured validation loss (nats per token)", ylabel="error of the law (%)")
    limit = 1.25 * np.max(np.abs(below.dataLim.intervaly))
    below.set_ylim(-limit, limit)
    above.legend(loc="upper left")
    figure.align_ylabels()
    return figure


@in_style
def teachers(fit: Fit) -> "Figure":
    """Student loss against teacher loss, a panel each: measured, by the law, without a teacher, and L_S = L_T.

    Raises:
      InputError: the fit is of supervised runs, or matplotlib is missing.
    """
    if fit.alone is None:
        raise InputError("only distilled runs have teachers to draw; give the distillation fit")
    students = sorted(set(zip(fit.runs["N"], fit.runs["D"], strict=True)))
    columns = min(3, len(students))
    rows = -(-len(students) // columns)
    figure, axes = canvas(3.0 * columns + 0.4, 2.9 * rows + 0.5, rows, columns, sharex=True, sharey=True, squeeze=False)
    L_T = np.linspace(fit.runs["L_T"].min() * 0.96, fit.runs["L_T"].max() * 1.03, 200)
    for panel, (N, D) in zip(axes.flat, students, strict=False):
        alone = float(supervised(fit.alone, N, D))
        own = (fit.runs["N"] == N) & (fit.runs["D"] == D)
        panel.plot(L_T, L_T, ":", color=FAINT, label="equal to its teacher")
        panel.axhline(alone, color=COLOURS[0], linestyle="--", linewidth=1.2, label="without a teacher (law)")
        panel.plot(L_T, fit.predict(N, D, L_T), color=COLOURS[1], label="distilled (law)")
        panel.plot(
            fit.runs["L_T"][own], fit.runs["loss"][own], "o", color=INK, markeredgecolor="white", label="distilled"
        )
        panel.set_title(f"N = {count(N)}, D = {count(D)}")
    for panel in axes.flat[len(students) :]:
        panel.remove()
    figure.supxlabel("teacher loss $L_T$ (nats per token)")
    figure.supylabel("student loss $L_S$ (nats per token)")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, 2 * columns))
    return figure


def _by_teacher(fit: Fit) -> Iterator[tuple[str, Table]]:
    """(its name and loss, its students), best teacher first; all runs without a name where there are no teachers."""
    if fit.alone is None:
        yield "", fit.runs
        return
    for L_T in np.unique(fit.runs["L_T"]):
        runs = fit.runs.where(fit.runs["L_T"] == L_T)
        yield ", ".join(filter(None, (runs["teacher"][0], f"$L_T$ = {L_T:.3f}"))), runs


def _profiles(runs: Table) -> Iterator[tuple[float, Table]]:
    """(training FLOPs, runs) of each IsoFLOP budget with three sizes or more, smallest first."""
    protocols = [name for name in set(runs["protocol"]) if name.lower().startswith("isoflop")]
    groups = [runs.where(runs["protocol"] == name) for name in protocols]
    usable = [group for group in groups if len(set(group["N"])) >= 3 and np.isfinite(group["flops"]).all()]
    yield from sorted(((float(np.median(group["flops"])), group) for group in usable), key=lambda pair: pair[0])


def _forward_flops(runs: Table, N: np.ndarray) -> np.ndarray:
    """Forward FLOPs per token at sizes `N`: a parabola in log-log through those of the runs, flops / (3 D)."""
    known = runs.where(np.isfinite(runs["flops"]))
    log_N, log_forward = np.log(known["N"]), np.log(known["flops"] / (3 * known["D"]))
    return np.exp(np.polynomial.Polynomial.fit(log_N, log_forward, deg=2)(np.log(N)))
