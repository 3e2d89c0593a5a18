"""The page of an evaluation: one HTML file that opens offline, in the look of the other reports."""

import html as escape_html
from collections.abc import Mapping
from typing import Any

from jaxdistill.evals import figures
from jaxdistill.evals.calibration import BINS
from jaxdistill.evals.tables import Table, tables
from jaxdistill.scaling.page import STYLE, inline

OWN_STYLE = "figure svg { width: auto; max-width: 100%; max-height: none }"  # diagrams keep their size, however many
LEGEND = (
    "Losses, divergences and entropies are in nats per token. KL is KL(teacher‖student), reverse KL(student‖teacher). "
    "Agree: how often both have the same most probable token. Accept: the mean of Σ min(p, q), the probability that "
    "speculative decoding keeps a token that the student drafts. Accuracy: how often the most probable token is the "
    "text's. ECE: the expected calibration error of the most probable token, over {bins} bins of equal width."
)
CAPTIONS = {
    "reliability": "How often a model is right when it is this sure of its most probable token. On the dashed line it "
    "knows what it knows; below it, it is too sure. A dot's area is the share of the tokens in its bin, and ECE "
    "the mean distance from the line.",
    "comparison": "The same runs in each score. Compare agreement with acceptance: a student can share its teacher's "
    "most probable token more often than others do and still be further from its distribution.",
}


def html(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page.

    Args:
      records: of `evaluate.evaluate`, by name of the run.

    Raises InputError where matplotlib is missing.
    """
    drawings = _drawings(records)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'><title>Evaluation</title>",
        f"<style>{STYLE}{OWN_STYLE}</style></head><body><h1>Evaluation</h1>{_lead(records)}",
        *(_table(table) for table in tables(records)),
        *(
            f"<figure>{inline(name, svg)}<figcaption>{_text(CAPTIONS[name])}</figcaption></figure>"
            for name, svg in drawings.items()
        ),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _drawings(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The figures of the first text, as SVG documents by name."""
    text = next((what for record in records.values() for what in record["scores"]), None)
    scores = {name: record["scores"][text] for name, record in records.items() if text in record["scores"]}
    drawings = {"reliability": figures.svg(figures.reliability(scores))} if scores else {}
    return drawings | ({"comparison": figures.svg(figures.comparison(scores))} if len(scores) > 1 else {})


def _lead(records: Mapping[str, Mapping[str, Any]]) -> str:
    teachers = sorted({record["teacher"] for record in records.values()} - {None})
    beside = f" beside {' and '.join(teachers)}" if teachers else ""
    scores = [own for record in records.values() for own in record["scores"].values()]
    bins = len(scores[0]["reliability"]["model"]["count"]) if scores else BINS
    words = f"{len(records)} run{'s' if len(records) > 1 else ''}{beside}."
    return f"<p class='lead'>{_text(words)}</p><p class='lead'>{_text(LEGEND.format(bins=bins))}</p>"


def _table(table: Table) -> str:
    head = "".join(f"<th{_word(column)}>{_text(name)}</th>" for column, name in enumerate(table.headings))
    rows = ("".join(f"<td{_word(column)}>{_text(cell)}</td>" for column, cell in enumerate(row)) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<h2>{_text(table.title)}</h2><div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _word(column: int) -> str:
    return " class='word'" if column == 0 else ""


def _text(words: str) -> str:
    return escape_html.escape(words, quote=True)
