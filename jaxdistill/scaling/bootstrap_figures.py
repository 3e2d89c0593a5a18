"""Figures of a bootstrap: how far each parameter of a fitted law may lie elsewhere, alone and in pairs."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxdistill.scaling.fit import Fit
from jaxdistill.scaling.identify import ADDITIVE, Parameter, symbols
from jaxdistill.scaling.style import COLOURS, FAINT, INK, canvas, greek, in_style, plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


@in_style
def clouds(fit: Fit) -> "Figure":
    """Every pair of fitted parameters in the bootstrap, the point fit a cross; grey: one of the two is not identified.

    A narrow, slanted cloud is a combination that the runs determine although they leave both its parts open. Values
    beyond an axis lie on its edge.

    Raises:
      InputError: matplotlib is missing.
    """
    fitted = [parameter for parameter in fit.parameters if not parameter.held and parameter.symbol != "a"]
    last, draws = len(fitted) - 1, {name: np.asarray(values) for name, values in symbols(fit.draws).items()}
    limits = {parameter.symbol: _limits(parameter, draws[parameter.symbol]) for parameter in fitted}
    figure, axes = canvas(1.5 * last + 0.5, 1.35 * last + 0.4, last, last, squeeze=False, sharex="col", sharey="row")
    for row, y in enumerate(fitted[1:]):
        for column, x in enumerate(fitted[:-1]):
            panel = axes[row, column]
            if column > row:
                panel.remove()
                continue
            colour = COLOURS[0] if x.identified and y.identified else FAINT
            cloud = {"alpha": 0.2, "markersize": 2.5, "markeredgewidth": 0, "rasterized": True}
            x_K, y_K = (np.clip(draws[own.symbol], *limits[own.symbol][1:]) for own in (x, y))
            panel.plot(x_K, y_K, ".", color=colour, clip_on=False, **cloud)
            panel.plot(x.value, y.value, "+", color=INK, markersize=9, markeredgewidth=1.2)
    for index in range(last):
        _scale(axes[last - 1, index], "x", fitted[index], *limits[fitted[index].symbol])
        _scale(axes[index, 0], "y", fitted[index + 1], *limits[fitted[index + 1].symbol])
    figure.align_labels()
    return figure


DECADES = 3  # either side of the point fit, at most: an E of 1e-12 says no more than one of 1e-3, which is "none"


def _limits(parameter: Parameter, draws_K: np.ndarray) -> tuple[bool, float, float]:
    """(whether its axis is logarithmic, ends): the 90 % interval of the draws and room on both sides.

    It is logarithmic where the interval spans more than a factor of three.
    """
    low, high = np.percentile(np.append(draws_K, parameter.value), [5, 95])
    if parameter.symbol in ADDITIVE or not 0 < 3 * low < high:
        room = 0.5 * (high - low) + 1e-9
        return False, low - room, high + room
    low, high = (np.clip(np.log(end / parameter.value), *np.log([10**-DECADES, 10**DECADES])) for end in (low, high))
    room = 0.25 * (high - low)
    return True, float(parameter.value * np.exp(low - room)), float(parameter.value * np.exp(high + room))


def _scale(
    panel: Any, side: Literal["x", "y"], parameter: Parameter, logarithmic: bool, low: float, high: float
) -> None:
    """Name an axis, and show it from low to high."""
    from matplotlib.ticker import MaxNLocator

    axis = {"x": panel.xaxis, "y": panel.yaxis}[side]
    scale = "log" if logarithmic else "linear"
    panel.set(**{f"{side}label": greek(parameter.symbol), f"{side}scale": scale, f"{side}lim": (low, high)})
    if logarithmic:
        plain_log_ticks(axis, few=True)
    else:
        axis.set_major_locator(MaxNLocator(3))


def _span(fitted) -> tuple[float, float]:
    """Limits of the ratio axis: every interval, but never more than a factor of 30."""
    ends = np.array([[p.low / p.value, p.high / p.value] for p in fitted])
    reach = np.exp(1.3 * np.max(np.abs(np.log(np.clip(ends, 1 / 30, 30)))))
    return 1 / reach, reach
