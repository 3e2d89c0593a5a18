"""The report of a sweep: fit, draw, and write one page that a person can read without knowing the code."""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
from typing import Any

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.scaling import allocation_figures, basis, bootstrap_figures, figures, page, style
from jaxdistill.scaling.fit import Fit, NotIdentified, fit_distillation, fit_supervised
from jaxdistill.scaling.regression import DEFAULT, Settings
from jaxdistill.scaling.scenarios import BOTH
from jaxdistill.scaling.table import read


@dataclasses.dataclass(frozen=True)
class Report:
    """What was fitted, which runs were not (a sentence, or nothing), and the files that were written, the page last."""

    fits: list[Fit | NotIdentified]
    set_aside: str
    paths: list[pathlib.Path]


def write(csv: str | pathlib.Path, directory: str | pathlib.Path, settings: Settings = DEFAULT) -> Report:
    """Fit the laws to a table of runs; write `fit.json`, `figures/` in three formats, and `report.html`.

    Each file appears whole or not at all, the page last. Tables without distilled runs give a report of the supervised
    law.

    Args:
      csv: the table; its links to run directories are relative to it.
      directory: where the files go, made where it is not there.
      settings: of the fit.

    Raises:
      InputError: no table, a table that cannot be read or fitted, or matplotlib is missing.
    """
    directory = pathlib.Path(directory)
    table = read(csv)
    fit = fit_supervised(table, settings)
    fits: list[Fit | NotIdentified] = [fit]
    if "distilled" in table["kind"]:
        fits.append(fit_distillation(table, fit, settings))
    drawings = draw(fits)
    files = {"fit.json": _json(fits).encode()}
    for name, figure in drawings.items():
        files |= {f"figures/{name}.{form}": style.render(figure, form) for form in ("svg", "pdf", "png")}
    inline = {name: files[f"figures/{name}.svg"].decode() for name in drawings}
    files["report.html"] = page.html(table, fits, [summary(one) for one in fits], inline, notes(fits)).encode()
    return Report(fits, table.set_aside(), [_put(directory / name, content) for name, content in files.items()])


def draw(fits: list[Fit | NotIdentified]) -> dict[str, Any]:
    """The figures these fits allow, by file name."""
    drawn = {}
    for fit in fits:
        if isinstance(fit, NotIdentified):
            continue
        if figures.has_isoflop(fit):
            drawn[f"{fit.kind}-isoflop"] = figures.isoflop(fit)
        if fit.kind == "distilled":
            drawn["distilled-teachers"] = figures.teachers(fit)
        drawn[f"{fit.kind}-agreement"] = figures.agreement(fit)
        drawn[f"{fit.kind}-intervals"] = bootstrap_figures.intervals(fit)
        drawn[f"{fit.kind}-clouds"] = bootstrap_figures.clouds(fit)
    match fits:
        case [Fit() as alone, Fit() as distilled]:
            law = basis.of_fits("this table", alone, distilled)
            drawn["advice-crossovers"] = allocation_figures.crossovers(law, law.runs["N"][1])
            drawn["advice-contours"] = allocation_figures.contours(law, BOTH)
    return drawn


def summary(fit: Fit | NotIdentified) -> str:
    """A fit in a few plain lines for a terminal. A parameter that the runs do not identify has no number in it."""
    if isinstance(fit, NotIdentified):
        return f"No law could be fitted to the {fit.kind} runs: {fit.reason}."
    error = 100 * np.abs(fit.relative_error_R)
    lines = [
        f"{len(fit.runs)} {fit.kind} runs, {fit.law}",
        f"  chosen because: {fit.why}",
        *(f"  {parameter}" for parameter in fit.parameters),
        f"  error on the runs fitted: {error.mean():.2g} % on average, {error.max():.2g} % at most",
        f"  {held_out(fit)}",
        f"  {100 * fit.converged:.0f} % of the starts ended at this minimum",
    ]
    return "\n".join(lines)


def held_out(fit: Fit) -> str:
    """The held-out check in one sentence."""
    if fit.held_out is None:
        return "no held-out check: too few runs would remain to fit"
    error = 100 * np.abs(fit.held_out.relative_error)
    return (
        f"error on the {len(error)} runs of lowest loss, predicted from the other {len(fit.runs) - len(error)}: "
        f"{error.mean():.2g} % on average, {error.max():.2g} % at most"
    )


def notes(fits: list[Fit | NotIdentified]) -> list[str]:
    """What a reader should doubt, in sentences."""
    said = []
    for fit in fits:
        if isinstance(fit, NotIdentified):
            continue
        if fit.converged < 0.05:
            said.append(f"Only {100 * fit.converged:.1f} % of the starts of the {fit.kind} fit ended at its minimum.")
        if fit.kind == "distilled" and isinstance(fits[0], Fit):
            said += _distillation_notes(fits[0], fit)
    return said


def _distillation_notes(alone: Fit, fit: Fit) -> list[str]:
    said = []
    if better := int(np.sum(fit.runs["loss"] < fit.runs["L_T"])):
        said.append(f"{better} of {len(fit.runs)} students beat their teacher, which the law has no place for.")
    outside_R = np.zeros(len(fit.runs), bool)
    for name in ("N", "D"):
        outside_R |= (fit.runs[name] < alone.runs[name].min()) | (fit.runs[name] > alone.runs[name].max())
    if outside_R.any():
        said.append(
            f"{outside_R.sum()} of {len(fit.runs)} students lie outside the sizes or tokens of the supervised runs, so "
            "what they would reach without a teacher is extrapolated."
        )
    return said


def _json(fits: list[Fit | NotIdentified]) -> str:
    packages = ("jaxdistill", "jax", "numpy", "scipy", "matplotlib")
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    content = {"versions": versions} | {fit.kind: _plain(fit) for fit in fits}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(fit: Fit | NotIdentified) -> dict[str, Any]:
    if isinstance(fit, NotIdentified):
        return {"not_identified": fit.reason}
    runs = [
        {"run": name, "loss": loss, "predicted": predicted}
        for name, loss, predicted in zip(fit.runs["run"], fit.runs["loss"], fit.predicted_R, strict=True)
    ]
    if fit.held_out is not None:
        for index, error in zip(np.flatnonzero(fit.held_out.held_R), fit.held_out.relative_error, strict=True):
            runs[index]["held_out_error"] = error
    content = {name: getattr(fit, name) for name in ("law", "why", "params", "objective", "converged", "settings")}
    content |= {"parameters": list(fit.parameters), "candidates": list(fit.candidates), "runs": runs}
    return _jsonable(content)


def _jsonable(value: Any) -> Any:
    """Dataclasses as objects, and infinities, which JSON lacks, as words."""
    if dataclasses.is_dataclass(value):
        return _jsonable(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return float(value) if isinstance(value, np.floating) else value


def _put(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(content)
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return path
