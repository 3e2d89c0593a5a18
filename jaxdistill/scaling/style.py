"""The look of the figures: palette, fonts, number formats.

Colours are Okabe and Ito's, told apart by colour-blind readers too; groups differ in their marker as well. Figures
never touch pyplot, so nothing global changes and no window opens.
"""

import functools
import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jaxdistill.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT, RULE = "#333333", "#999999", "#e6e6e6"
STYLE: dict[Any, Any] = {
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


def in_style(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """Draws in the style above, and says what to install where matplotlib is missing."""

    @functools.wraps(draw)
    def drawn(*inputs: Any) -> "Figure":
        try:
            import matplotlib
        except ImportError:
            raise InputError("figures need matplotlib; install it with `pip install 'jaxdistill[plots]'`") from None
        with matplotlib.rc_context(STYLE):
            return draw(*inputs)

    return drawn


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **layout: Any) -> tuple["Figure", Any]:
    """A Figure of this size in inches, and its Axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **layout)


def render(figure: "Figure", form: str) -> bytes:
    """A figure as svg, pdf or png, the same bytes for the same figure."""
    import matplotlib

    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    buffer = io.BytesIO()
    settings: dict[Any, Any] = STYLE | {"svg.hashsalt": "jaxdistill"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format=form, metadata=undated)
    return buffer.getvalue()


def styles(count: int) -> Iterator[tuple[str, str]]:
    """(colour, marker) of each of `count` groups; beyond six they repeat."""
    for index in range(count):
        yield COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def plain_log_ticks(axis: Any, few: bool = False) -> None:
    """Tick a logarithmic axis at round numbers, written out; a `few` where there is little room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    span = high / low if not few else (high / low) ** 2
    subs = (1,) if span > 1e3 else (1, 2, 5) if span > 4 else range(1, 10)
    axis.set_major_locator(LogLocator(subs=subs, numticks=4 if few else 12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axis.set_minor_formatter(NullFormatter())


def count(value: float) -> str:
    """12000 as 12k, 3e9 as 3B."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale * 0.9995:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def scientific(value: float) -> str:
    """3e10 as matplotlib's math."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return rf"${mantissa.removesuffix('.0')} \times 10^{{{int(exponent)}}}$"


def greek(symbol: str) -> str:
    """The Greek names of a symbol as matplotlib's math."""
    return re.sub("(alpha|beta|gamma|kappa)('?)", r"$\\\1\2$", symbol)
