"""The table of runs: one row a finished training run, read from a CSV that any spreadsheet or pandas can read too."""

import csv
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxdistill.errors import InputError

NUMBERS: Mapping[str, str] = {
    "N": "parameters without the token embedding",
    "N_total": "parameters with it",
    "D": "training tokens",
    "loss": "validation cross-entropy on data, nats per token",
    "flops": "training FLOPs of the model itself, 3 F D, no teacher",
    "N_T": "the teacher's N",
    "D_T": "the teacher's D",
    "L_T": "the teacher's measured validation loss, nats per token",
    "seed": "random seed",
    "seconds": "wall time",
    "bits_per_byte": "validation loss in bits per byte of text",
}
WORDS: Mapping[str, str] = {
    "run": "name",
    "kind": "supervised or distilled",
    "protocol": "which sweep it belongs to, e.g. `fixed-M 20` or `isoflop 3e10`",
    "teacher": "name of the teacher's run",
    "identity": "hash of the configuration",
    "tokenizer": "digest of the tokenizer",
    "validation": "digest of the validation tokens and how they are cut",
    "directory": "where the run lies, relative to the table",
    "status": "`finished`, or why not",
}
REQUIRED = ("N", "D", "loss")
KINDS = ("supervised", "distilled")


@dataclasses.dataclass(frozen=True)
class Table:
    """Runs as columns: `table["loss"]` is float64 [R], a column of words is an object array [R].

    A number nobody gave is NaN, a word nobody gave is empty. Columns the table does not know are kept as words.
    """

    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["loss"])

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def where(self, keep_R: np.ndarray) -> "Table":
        """The rows at a boolean mask or at indices."""
        return Table({name: values[keep_R] for name, values in self.columns.items()})

    def finished(self, *kinds: str) -> "Table":
        """The finished runs of one kind, or of several: what a law is fitted to."""
        return self.where(np.isin(self["kind"], kinds) & (self["status"] == "finished"))

    def set_aside(self) -> str:
        """How many runs did not finish, and which, in a sentence; empty if all did."""
        names = self["run"][self["status"] != "finished"]
        if not len(names):
            return ""
        named = ", ".join(name for name in names[:5] if name)
        of = f"{len(names)} of {len(self)} runs did not finish and {'were' if len(names) > 1 else 'was'} set aside"
        return f"{of}: {named}{', ...' if len(names) > 5 else ''}." if named else f"{of}."

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each run as a dict."""
        for row in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, row, strict=True))


def read(path: str | pathlib.Path) -> Table:
    """Read a table of runs.

    Only `N`, `D` and `loss` must be there. `kind` is supervised and `status` finished unless the table says otherwise;
    a run that is not finished needs no loss.

    Raises:
      InputError: the file is missing or empty, lacks a column, or a row holds something that cannot be a run.
    """
    path = pathlib.Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows, header = list(reader), [name.strip() for name in reader.fieldnames or ()]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run the sweep first, or name the table of runs") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV file that can be read: {error}") from None
    if missing := [name for name in REQUIRED if name not in header]:
        raise InputError(
            f"{path} lacks the column(s) {', '.join(missing)}; a table of runs needs {', '.join(REQUIRED)}"
        )
    if not rows:
        raise InputError(f"{path} holds no runs, only a header")
    return table([{name.strip(): cell for name, cell in _cells(row, path)} for row in rows], str(path))


def table(rows: list[Mapping[str, Any]], where: str = "the table") -> Table:
    """A Table from one mapping a run, checked as `read` checks a file; `where` names it in errors."""
    checked = [_run(row, f"{where}, run {row.get('run') or number}") for number, row in enumerate(rows, start=1)]
    names = dict.fromkeys([*NUMBERS, *WORDS, *(name for row in checked for name in row)])
    return Table({name: _column(name, [row.get(name, "") for row in checked]) for name in names})


def of_columns(columns: Any) -> Table:
    """A Table from columns: what `jaxdistill.load_table` gives, or a pandas DataFrame; None and NaN are blank."""
    names = list(columns)
    rows = zip(*(columns[name] for name in names), strict=True)
    return table(
        [{n: "" if cell is None or cell != cell else cell for n, cell in zip(names, r, strict=True)} for r in rows]
    )


def _cells(row: Mapping[str, str], path: pathlib.Path) -> Iterator[tuple[str, str]]:
    if None in row or None in row.values():
        raise InputError(
            f"{path} has a row whose cells do not match the header: {[cell for cell in row.values() if cell]}"
        )
    for name, cell in row.items():
        yield name, cell.strip()


def _run(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    run = {"kind": "supervised", "status": "finished"} | {name: cell for name, cell in row.items() if cell != ""}
    run |= {name: _number(run[name], name, where) for name in NUMBERS if name in run}
    if run["kind"] not in KINDS:
        raise InputError(f"{where}: kind is {run['kind']!r}, and must be {' or '.join(KINDS)}")
    if run["status"] == "finished":
        needed = (*REQUIRED, "L_T") if run["kind"] == "distilled" else REQUIRED
        if wrong := [name for name in needed if not 0 < float(run.get(name, np.nan)) < np.inf]:
            raise InputError(f"{where}: {', '.join(wrong)} must be positive and finite in a finished {run['kind']} run")
    return run


def _number(cell: Any, name: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{where}: {name} is {cell!r}, which is no number ({NUMBERS[name]})") from None


def _column(name: str, values: list[Any]) -> np.ndarray:
    if name in NUMBERS:
        return np.array([np.nan if value == "" else value for value in values], dtype=np.float64)
    return np.array([str(value) for value in values], dtype=object)
