"""The verb's two questions: does this fit, and what would be faster."""

import dataclasses
import json

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jaxdistill.errors import InputError
from jaxdistill.planning import compiling, estimate, report, search
from jaxdistill.planning.search import Tried
from jaxdistill.planning.worker import Question


def one(question: Question, progress: Console, *, as_json: bool) -> None:
    """Compile one step and print its plan; InputError with the numbers where it does not fit."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=progress) as bar:
        bar.add_task(f"compiling for {question.topology}, which takes minutes for a large model", total=None)
        said = compiling.compile_step(question)
    if as_json:
        print(json.dumps(_with_estimate(Tried(question.overrides, said))))
    else:
        report.show(said, Console(highlight=False))
    if (wrong := report.verdict(said)) is not None:
        raise InputError(wrong)


def many(question: Question, most: int, processes: int, progress: Console, *, as_json: bool) -> None:
    """Search and print the ranking; InputError where nothing fits.

    Raises InputError also for numbers of settings or processes below 1.
    """
    if most < 1 or processes < 1:
        raise InputError(f"--search {most} with --processes {processes}: both must be at least 1")
    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=progress) as bar:
        task = bar.add_task("", total=most)

        def tried(setting: Tried) -> None:
            bar.update(task, advance=1, description=" ".join(report.row(setting)[:1]))

        found = search.search(question, most, processes=processes, tried=tried)
    if as_json:
        print(json.dumps([_with_estimate(setting) for setting in found]))
    else:
        Console(highlight=False).print(report.ranking(found), report.ASSUMED)
    best = found[0]
    if best.said is not None and (wrong := report.verdict(best.said)) is not None:
        raise InputError(f"none of {len(found)} settings fits; of the smallest: {wrong}")


def _with_estimate(setting: Tried) -> dict:
    assert setting.said is not None
    found = estimate.of(setting.said)
    numbers = None if found is None else dataclasses.asdict(found)
    return {"overrides": setting.overrides, "fits": estimate.fits(setting.said), "estimate": numbers, **setting.said}
