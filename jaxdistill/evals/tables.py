"""The results of an evaluation as tables of words: what the terminal and the page both show."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import rich.box
import rich.console
import rich.table


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column names things, the others are numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def plain(value: float) -> str:
    return f"{value:.4f}"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def percent(value: float) -> str:
    return f"{value:.1%}"


SCORES = {
    "loss": ("loss", plain),
    "bits_per_byte": ("bits/byte", plain),
    "forward_kl": ("KL", plain),
    "reverse_kl": ("reverse", plain),
    "agreement": ("agree", percent),
    "acceptance": ("accept", percent),
    "ece": ("ECE", percent),
    "correct": ("accuracy", percent),
    "entropy": ("entropy", plain),
    "teacher_loss": ("teacher's loss", plain),
    "teacher_correct": ("teacher's accuracy", percent),
    "teacher_entropy": ("teacher's entropy", plain),
    "teacher_ece": ("teacher's ECE", percent),
    "windows": ("windows", whole),
    "tokens": ("tokens", whole),
}
"""Heading and format of each score, in order; losses, divergences and entropies in nats per token."""

BRIEF = 7
"""How many of them a terminal of 80 columns has room for."""

ANSWERS = {
    "questions": ("questions", whole),
    "accuracy": ("accuracy", percent),
    "accuracy_per_byte": ("accuracy per byte", percent),
    "chance": ("chance", percent),
    "loss": ("loss", plain),
    "cut": ("cut", whole),
}
"""The same for files of questions."""


def tables(records: Mapping[str, Mapping[str, Any]], *, brief: bool = False) -> Iterator[Table]:
    """One table for each text, each file of questions and each task of lm-eval.

    Args:
      records: of `evaluate.evaluate`, by name of the run.
      brief: the first scores alone, as many as a terminal has room for.
    """
    scores = dict(list(SCORES.items())[:BRIEF]) if brief else SCORES
    for kind, columns in (("scores", scores), ("questions", ANSWERS), ("harness", None)):
        for what in dict.fromkeys(what for record in records.values() for what in record[kind]):
            found = {name: record[kind][what] for name, record in records.items() if what in record[kind]}
            metrics = {metric: (metric, plain) for own in found.values() for metric in own}
            yield _table(what, columns or metrics, found)


def _table(title: str, columns: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> Table:
    """Without the columns that no run has a value for."""
    shown = [key for key in columns if any(key in own for own in scores.values())]
    rows = ((name, *(columns[key][1](own[key]) if key in own else "" for key in shown)) for name, own in scores.items())
    return Table(title, ("run", *(columns[key][0] for key in shown)), tuple(rows))


def show(records: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the brief tables."""
    console = rich.console.Console(highlight=False)
    for table in tables(records, brief=True):
        drawn = rich.table.Table(
            title=table.title, title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for column, heading in enumerate(table.headings):
            drawn.add_column(heading, justify="left" if column == 0 else "right", no_wrap=True)
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
