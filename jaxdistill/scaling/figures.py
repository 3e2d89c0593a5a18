"""Figures of a sweep, each a function of a fit that returns a matplotlib Figure.

Colours are Okabe and Ito's, told apart by colour-blind readers too; a size, a budget or a teacher also has its own marker.
Figures never touch pyplot, so nothing global changes and no window opens.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling.fit import Fit
from jaxdistill.scaling.identify import symbols
from jaxdistill.scaling.laws import distillation, supervised
from jaxdistill.scaling.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT, RULE = "#333333", "#999999", "#e6e6e6"
STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "figure.labelsize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "svg.fonttype": "path",
    "savefig.dpi": 200,
}


def _in_style(draw: Callable[[Fit], "Figure"]) -> Callable[[Fit], "Figure"]:
    """Draws in the style above, and says what to install where matplotlib is missing."""

    @functools.wraps(draw)
    def drawn(fit: Fit) -> "Figure":
        try:
            import matplotlib
        except ImportError:
            raise InputError("figures need matplotlib; install it with `pip install 'jaxdistill[plots]'`") from None
        with matplotlib.rc_context(dict(STYLE)):
            return draw(fit)

    return drawn


def has_isoflop(fit: Fit) -> bool:
    """Whether `isoflop` has anything to draw."""
    return fit.kind == "supervised" and any(True for _ in _profiles(fit.runs))


@_in_style
def isoflop(fit: Fit) -> "Figure":
    """Loss against model size at each compute budget: measured, by the law, and the law's minimum.

    A budget is a protocol whose name starts with `isoflop`. What a token costs at sizes between the runs is interpolated from
    the runs' own FLOPs.

    Raises:
      InputError: the table has no IsoFLOP profile of at least three sizes, or matplotlib is missing.
    """
    if not has_isoflop(fit):
        raise InputError(
            "an IsoFLOP figure needs a protocol `isoflop ...` of supervised runs of at least three sizes, with FLOPs"
        )
    profiles = list(_profiles(fit.runs))
    figure, axes = _canvas(6.4, 4.2)
    for (budget, runs), (colour, marker) in zip(profiles, _styles(len(profiles)), strict=True):
        N = np.geomspace(runs["N"].min() / 1.5, runs["N"].max() * 1.5, 200)
        loss = supervised(fit.params, N, budget / (3 * _forward_flops(fit.runs, N)))
        best = np.argmin(loss)
        axes.plot(N, loss, color=colour, zorder=1)
        if 0 < best < len(N) - 1:
            axes.plot(N[best], loss[best], "o", color=colour, markersize=12, markerfacecolor="none", zorder=2)
        axes.plot(
            runs["N"], runs["loss"], marker, color=colour, markeredgecolor="white", label=f"{_scientific(budget)} FLOPs"
        )
    axes.plot([], [], "o", color=FAINT, markersize=10, markerfacecolor="none", label="minimum of the law")
    axes.set(xscale="log", xlabel="model size N (non-embedding parameters)", ylabel="validation loss (nats per token)")
    _plain_log_ticks(axes.xaxis)
    axes.legend(title="training compute", alignment="left")
    return figure


@_in_style
def agreement(fit: Fit) -> "Figure":
    """Measured against predicted loss, with relative residuals below; open marks are predictions of held-out runs.

    Raises:
      InputError: matplotlib is missing.
    """
    figure, (above, below) = _canvas(5.2, 5.6, rows=2, sharex=True, height_ratios=(3, 1.3))
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


@_in_style
def teachers(fit: Fit) -> "Figure":
    """Student loss against teacher loss, one panel a student: measured, by the law, alone without a teacher, and L_S = L_T.

    Raises:
      InputError: the fit is of supervised runs, or matplotlib is missing.
    """
    if fit.kind != "distilled" or fit.L_supervised_R is None:
        raise InputError("only distilled runs have teachers to draw; give the distillation fit")
    students = sorted(set(zip(fit.runs["N"], fit.runs["D"], fit.L_supervised_R, strict=True)))
    columns = min(3, len(students))
    rows = -(-len(students) // columns)
    figure, axes = _canvas(
        3.0 * columns + 0.4, 2.9 * rows + 0.5, rows, columns, sharex=True, sharey=True, squeeze=False
    )
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


@_in_style
def intervals(fit: Fit) -> "Figure":
    """The bootstrap's spread of each fitted parameter about its point fit, with the 90 % interval; grey: not identified.

    Raises:
      InputError: matplotlib is missing.
    """
    fitted = [parameter for parameter in fit.parameters if not parameter.held]
    figure, axes = _canvas(5.6, 0.42 * len(fitted) + 1.0)
    draws = symbols(fit.draws)
    for row, parameter in enumerate(fitted):
        relative = draws[parameter.symbol] / parameter.value
        low, high = np.clip([parameter.low / parameter.value, parameter.high / parameter.value], 1e-3, 1e3)
        colour = COLOURS[0] if parameter.identified else FAINT
        jitter = np.random.default_rng(row).uniform(-0.22, 0.22, relative.size)
        axes.plot(
            relative, row + jitter, ".", color=colour, alpha=0.12, markersize=3, markeredgewidth=0, rasterized=True
        )
        axes.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(1, row, "o", color=colour, markeredgecolor="white")
    names = [p.symbol if p.identified else f"{p.symbol} (not identified)" for p in fitted]
    axes.set(xscale="log", yticks=range(len(fitted)), yticklabels=names, xlabel="bootstrap value / point fit")
    axes.set_xlim(_span(fitted))
    axes.invert_yaxis()
    _plain_log_ticks(axes.xaxis)
    axes.grid(axis="y", visible=False)
    return figure


def _canvas(width: float, height: float, rows: int = 1, columns: int = 1, **layout: Any) -> tuple["Figure", Any]:
    """A Figure of this size in inches, and its Axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **layout)


def _styles(count: int) -> Iterator[tuple[str, str]]:
    for index in range(count):
        yield COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


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


def _plain_log_ticks(axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1,) if high / low > 1e3 else (1, 2, 5) if high / low > 4 else range(1, 10)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axis.set_minor_formatter(NullFormatter())


def count(value: float) -> str:
    """12000 as 12k, 3e9 as 3B."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale * 0.9995:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return rf"${mantissa.removesuffix('.0')} \times 10^{{{int(exponent)}}}$"
