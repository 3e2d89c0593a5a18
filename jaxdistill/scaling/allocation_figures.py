"""Figures of what a law advises: when a teacher pays off, and where the compute goes at each size and budget."""

import pathlib
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling.allocate import COARSE, Allocation, Question, optimum, supervised_optimum
from jaxdistill.scaling.basis import Basis
from jaxdistill.scaling.crossover import gap
from jaxdistill.scaling.scenarios import SCENARIOS, Scenario
from jaxdistill.scaling.style import COLOURS, FAINT, INK, canvas, count, in_style, plain_log_ticks, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS = 100  # in a band
TOKENS_PER_PARAMETER = (2.0, 2e4)  # of the supervised model, at the ends of the compute axis


def of(basis: Basis, question: Question) -> "Figure":
    """The figure that answers a question: crossovers of the student that is given, else contours over all sizes."""
    return crossovers(basis, question.N_S) if question.N_S else contours(basis, question.scenario)


@in_style
def crossovers(basis: Basis, N_S: float) -> "Figure":
    """Loss of a supervised and a distilled model against compute in the four scenarios, and the gain with its band.

    Raises:
      InputError: matplotlib is missing.
    """
    compute_C = np.geomspace(*(3 * basis.cost(N_S) * N_S * np.array(TOKENS_PER_PARAMETER)), num=61)
    figure, (above, below) = canvas(6.4, 6.0, rows=2, sharex=True)
    alone_C = supervised_optimum(basis, basis.laws, compute_C, N_S).loss
    above.plot(compute_C, alone_C, "--", color=INK, label="supervised")
    below.axhline(0, color=FAINT, linewidth=1)
    for scenario, colour in zip(SCENARIOS, COLOURS, strict=False):
        question = Question(scenario, N_S)
        above.plot(compute_C, optimum(basis, basis.laws, question, compute_C).loss, color=colour, label=scenario.name)
        below.fill_between(
            compute_C[::3], *_band(basis, question, compute_C[::3]), color=colour, alpha=0.2, linewidth=0
        )
        below.plot(compute_C, gap(basis, basis.laws, question, compute_C), color=colour)
    above.set(ylabel="loss (nats per token)", title=f"A student of {count(N_S)} parameters")
    below.set(xscale="log", xlabel="compute (FLOPs)", ylabel="supervised less distilled (nats per token)")
    above.set_ylim(top=alone_C[0] + 0.1 * np.ptp(alone_C))
    middle = gap(basis, basis.laws, Question(SCENARIOS[0], N_S), compute_C)
    below.set_ylim(-1.5 * np.max(np.abs(middle[compute_C.size // 4 :])), 1.5 * np.max(np.abs(middle)))
    above.legend()
    figure.align_ylabels()
    return figure


def _band(basis: Basis, question: Question, compute_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """5th and 95th percentile of the gain over the draws."""
    draws = jax.tree.map(lambda field: np.repeat(np.asarray(field)[:DRAWS], len(compute_C)), basis.draws)
    K = len(draws.supervised.A) // len(compute_C)
    gap_KC = gap(basis, draws, question, np.tile(compute_C, K), COARSE).reshape(K, -1)
    low_C, high_C = np.percentile(gap_KC, [5, 95], axis=0, method="nearest")
    return low_C, high_C


@in_style
def contours(basis: Basis, scenario: Scenario) -> "Figure":
    """The optimal allocation over student size and compute: tokens, teacher, losses, and the gain over supervised.

    Raises:
      InputError: matplotlib is missing.
    """
    N_G = np.geomspace(*basis.runs["N"], num=24)
    ends = 3 * basis.cost(N_G[[0, -1]]) * N_G[[0, -1]] * np.array([20.0, 200.0])
    compute_C = np.geomspace(*ends, num=30)
    found = [optimum(basis, basis.laws, Question(scenario, N), compute_C, COARSE) for N in N_G]
    best = Allocation(*(np.stack(field) for field in zip(*found, strict=True)))
    alone_GC = np.stack([supervised_optimum(basis, basis.laws, compute_C, N).loss for N in N_G])
    figure, axes = canvas(9.6, 6.0, 2, 3, sharex=True, sharey=True)
    large = {"student tokens": best.D_S, "teacher parameters": best.N_T, "teacher tokens": best.D_T}
    losses = {"teacher loss": best.L_T, "student loss": best.loss, "gain over supervised": alone_GC - best.loss}
    for panel, (title, value_GC) in zip(axes.flat, {**large, **losses}.items(), strict=True):
        panel.set(xscale="log", yscale="log", title=title)
        _lines(panel, compute_C, N_G, value_GC, title in large)
        plain_log_ticks(panel.yaxis)
    figure.supxlabel("compute (FLOPs)")
    figure.supylabel("student parameters")
    return figure


def _lines(panel: Any, x_C: np.ndarray, y_G: np.ndarray, value_GC: np.ndarray, large: bool) -> None:
    """Contours with their values on them, in even steps of the value, or of its logarithm where it is `large`."""
    from matplotlib.ticker import MaxNLocator

    value_GC = np.where(np.isfinite(value_GC), value_GC, np.nan)
    if np.nanmax(value_GC) - np.nanmin(value_GC) <= 1e-6 * np.nanmax(np.abs(value_GC)):
        panel.text(0.5, 0.5, f"{np.nanmax(value_GC):.3g} everywhere", ha="center", transform=panel.transAxes)
        return
    if large:
        low, high = np.log10(np.nanmin(value_GC)), np.log10(np.nanmax(value_GC))
        steps = np.log10([1, 3]) if high - low < 6 else np.zeros(1)
        levels = np.unique(np.concatenate([np.arange(np.floor(low), np.ceil(high) + 1) + step for step in steps]))
        drawn = panel.contour(x_C, y_G, np.log10(value_GC), levels=levels, colors=COLOURS[0], linewidths=1)
        panel.clabel(drawn, fmt=lambda level: count(10**level) if level < 15 else f"{10**level:.0e}")
        return
    levels = MaxNLocator(8).tick_values(*np.nanpercentile(value_GC, [2, 98]))
    widths = np.where(np.isclose(levels, 0), 2.0, 1.0)
    panel.clabel(panel.contour(x_C, y_G, value_GC, levels=levels, colors=COLOURS[1], linewidths=widths), fmt="%g")


FORMATS = (".svg", ".pdf", ".png")


def check(path: pathlib.Path) -> pathlib.Path:
    """The path, if a figure can be saved there; to be asked before the work is done.

    Raises:
      InputError: another format.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path} is no figure that can be drawn; end its name in {', '.join(FORMATS)}")
    return path


def save(figure: "Figure", path: pathlib.Path) -> None:
    """Write a figure in the format of its suffix, the same bytes for the same figure.

    Raises:
      InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(render(figure, path.suffix.removeprefix(".")))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
