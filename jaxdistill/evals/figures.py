"""The figures of an evaluation: reliability diagrams, and runs side by side."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdistill.evals.calibration import Reliability
from jaxdistill.scaling.style import COLOURS, FAINT, STYLE, canvas, in_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = Mapping[str, Mapping[str, Any]]
"""Of `evaluate.evaluate` on one text, by name of the run."""

COLUMNS = 4
COMPARED = {
    "loss": "loss",
    "forward_kl": "KL(teacher‖student)",
    "agreement": "top-1 agreement",
    "acceptance": "acceptance",
    "ece": "ECE",
}


@in_style
def reliability(scores: Scores) -> "Figure":
    """One diagram a run: accuracy over confidence, with dots whose areas follow the number of tokens in each bin."""
    rows, width = -(-len(scores) // COLUMNS), min(len(scores), COLUMNS)
    figure, panels = canvas(2.3 * width + 0.8, 2.4 * rows + 0.5, rows, width, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(scores) :]:
        panel.set_axis_off()
    for panel in panels.flat[len(scores) - width : len(scores)]:  # the lowest of each column
        panel.tick_params(labelbottom=True)
    for panel, (name, own) in zip(panels.flat, scores.items(), strict=False):
        panel.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
        for (who, diagram), colour in zip(own["reliability"].items(), COLOURS, strict=False):
            _curve(panel, Reliability(**diagram), colour, {"model": "the run", "teacher": "its teacher"}[who])
        panel.set_title(name)
        panel.set_aspect("equal")
    lines = {line.get_label(): line for panel in panels.flat for line in panel.get_legend_handles_labels()[0]}
    figure.legend(lines.values(), lines.keys(), loc="outside upper left", ncols=2)
    figure.supxlabel("confidence in the most probable token")
    figure.supylabel("share that is right")
    return figure


def _curve(panel: Any, diagram: Reliability, colour: str, label: str) -> None:
    count, confidence, accuracy = np.array(diagram.filled).T
    panel.plot(confidence, accuracy, color=colour, linewidth=1, label=label)
    panel.scatter(confidence, accuracy, s=200 * count / count.sum(), color=colour, alpha=0.5, linewidths=0)


@in_style
def comparison(scores: Scores) -> "Figure":
    """Runs side by side in each score that any of them has.

    Dots and not bars: what tells runs apart is small beside a loss, and a bar that does not begin at 0 misleads.
    """
    present = [key for key in COMPARED if any(key in own for own in scores.values())]
    height = 0.24 * len(scores) + 0.8
    figure, panels = canvas(1.7 * len(present) + 1.6, height, 1, len(present), sharey=True, squeeze=False)
    for panel, key in zip(panels.flat, present, strict=True):
        values = [own.get(key, np.nan) for own in scores.values()]
        panel.plot(values, list(scores), color=COLOURS[0], marker="o", linestyle="none")
        panel.set_title(COMPARED[key])
        panel.margins(x=0.12)
    panels.flat[0].set_ylim(len(scores) - 0.4, -0.6)
    return figure


def svg(figure: "Figure") -> str:
    """The figure as an SVG document, the same text for the same figure."""
    import matplotlib

    buffer = io.StringIO()
    settings: dict[Any, Any] = {**STYLE, "svg.hashsalt": "jaxdistill"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
