"""Figures of a sweep, each a function of a fit that returns a matplotlib Figure."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling.fit import Fit
from jaxdistill.scaling.identify import symbols
from jaxdistill.scaling.laws import distillation, supervised
from jaxdistill.scaling.style import (
    COLOURS,
    FAINT,
    INK,
    canvas,
    count,
    greek,
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
    return fit.kind == "supervised" and any(True for _ in _profiles(fit.runs))


@in_style
def isoflop(fit: Fit) -> "Figure":
    """Loss against model size at each compute budget: measured, by the law, and the law's minimum.

    A budget is a protocol whose name starts with `isoflop`. What a token costs at sizes between the runs is
    interpolated from the runs' own FLOPs.

    Raises:
      InputError: the table has no IsoFLOP profile of at least three sizes, or matplotlib is missing.
    """
    if not has_isoflop(fit):
        raise InputError(
            "an IsoFLOP figure needs a protocol `isoflop ...` of supervised runs of at least three sizes, with FLOPs"
        )
    profiles = list(_profiles(fit.runs))
    figure, axes = canvas(6.4, 4.2)
    for (budget, runs), (colour, marker) in zip(profiles, styles(len(profiles)), strict=True):
        N = np.geomspace(runs["N"].min() / 1.5, runs["N"].max() * 1.5, 200)
        loss = supervised(fit.params, N, budget / (3 * _forward_flops(fit.runs, N)))
        best = np.argmin(loss)
        axes.plot(N, loss, color=colour, zorder=1)
        if 0 < best < len(N) - 1:
            axes.plot(N[best], loss[best], "o", color=colour, markersize=12, markerfacecolor="none", zorder=2)
        axes.plot(
            runs["N"], runs["loss"], marker, color=colour, markeredgecolor="white", label=f"{scientific(budget)} FLOPs"
        )
    axes.plot([], [], "o", color=FAINT, markersize=10, markerfacecolor="none", label="minimum of the law")
    axes.set(xscale="log", xlabel="model size N (non-embedding parameters)", ylabel="validation loss (nats per token)")
    plain_log_ticks(axes.xaxis)
    axes.legend(title="training compute", alignment="left")
    return figure


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
    if fit.kind != "distilled" or fit.L_supervised_R is None:
        raise InputError("only distilled runs have teachers to draw; give the distillation fit")
    students = sorted(set(zip(fit.runs["N"], fit.runs["D"], fit.L_supervised_R, strict=True)))
    columns = min(3, len(students))
    rows = -(-len(students) // columns)
    figure, axes = canvas(3.0 * columns + 0.4, 2.9 * rows + 0.5, rows, columns, sharex=True, sharey=True, squeeze=False)
    L_T = np.linspace(fit.runs["L_T"].min() * 0.96, fit.runs["L_T"].max() * 1.03, 200)
    for panel, (N, D, alone) in zip(axes.flat, students, strict=False):
        own = (fit.runs["N"] == N) & (fit.runs["D"] == D)
        panel.plot(L_T, L_T, ":", color=FAINT, label="equal to its teacher")
        panel.axhline(alone, color=COLOURS[0], linestyle="--", linewidth=1.2, label="without a teacher (law)")
        panel.plot(L_T, distillation(fit.params, N, D, L_T, alone), color=COLOURS[1], label="distilled (law)")
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


@in_style
def intervals(fit: Fit) -> "Figure":
    """The bootstrap's spread of each fitted parameter about the point fit, its 90 % interval; grey: not identified.

    Raises:
      InputError: matplotlib is missing.
    """
    fitted = [parameter for parameter in fit.parameters if not parameter.held]
    figure, axes = canvas(5.6, 0.42 * len(fitted) + 1.0)
    draws = symbols(fit.draws)
    for row, parameter in enumerate(fitted):
        relative = np.asarray(draws[parameter.symbol]) / parameter.value
        low, high = np.clip([parameter.low / parameter.value, parameter.high / parameter.value], 1e-3, 1e3)
        colour = COLOURS[0] if parameter.identified else FAINT
        jitter = np.random.default_rng(row).uniform(-0.22, 0.22, relative.size)
        axes.plot(
            relative, row + jitter, ".", color=colour, alpha=0.12, markersize=3, markeredgewidth=0, rasterized=True
        )
        axes.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(1, row, "o", color=colour, markeredgecolor="white")
    names = [greek(p.symbol) if p.identified else f"{greek(p.symbol)} (not identified)" for p in fitted]
    axes.set(xscale="log", yticks=range(len(fitted)), yticklabels=names, xlabel="bootstrap value / point fit")
    axes.set_xlim(_span(fitted))
    axes.invert_yaxis()
    plain_log_ticks(axes.xaxis)
    axes.grid(axis="y", visible=False)
    return figure


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


def _span(fitted) -> tuple[float, float]:
    """Limits of the ratio axis: every interval, but never more than a factor of 30."""
    ends = np.array([[p.low / p.value, p.high / p.value] for p in fitted])
    reach = np.exp(1.3 * np.max(np.abs(np.log(np.clip(ends, 1 / 30, 30)))))
    return 1 / reach, reach
