"""The next runs of a sweep: candidates of its experiment file, held against the laws that its finished runs give."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdistill import analysis, rundir, sweep
from jaxdistill import config as configs
from jaxdistill.errors import InputError
from jaxdistill.experiment import Experiment
from jaxdistill.scaling import basis, suggest
from jaxdistill.scaling.fit import Fit
from jaxdistill.scaling.style import count

FILE = "suggested.json"
BEYOND = 10.0  # the target that nobody named: this many times the size and tokens of the largest runs
DIGITS = 2  # of the width of an interval that a person sees


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A plan over named runs; `file` lists the names for `sweep --suggested`."""

    plan: suggest.Plan
    names: tuple[str, ...]
    file: Path


def suggest_runs(
    candidates: Mapping[str, Experiment],
    directory: str | Path,
    target: str | None = None,
    number: int = 4,
    compute: float = np.inf,
    resamples: int = 1000,
) -> Suggestion:
    """Choose the candidates that narrow the target most per FLOP, and write their names into the sweep directory.

    A student's teacher that has not been trained is trained with it: its FLOPs count once, and so does what its loss
    tells.

    Args:
      candidates: experiments by name; those that the directory has finished are left out.
      directory: of a sweep with enough finished runs for both laws.
      target: as `suggest.target` reads it; None for a student ten times beyond the runs, under a teacher as good as
        that student would be alone. (Under a weaker one the law's answer is that teacher's loss, and nothing is open.)
      number: how many to choose, at most.
      compute: FLOPs of all of them together.
      resamples: of the bootstrap.

    Raises:
      InputError: no laws can be fitted, the target is none, or nothing is left to choose.
    """
    directory = Path(directory)
    analysis.write_table(directory)
    fits = basis.fits(directory, resamples)
    law = basis.of_fits(str(directory), *fits)
    measured = {row["identity"]: row["loss"] for row in analysis.rows(directory) if row["status"] == "finished"}
    points = {name: point for name, point in sweep.with_sources(candidates).items() if isinstance(point, Experiment)}
    points = {name: point for name, point in points.items() if configs.identity(point) not in measured}
    if not points:
        raise InputError(f"{directory} has finished every candidate; give the experiment file more of them")
    names, places = tuple(points), {configs.text(point): place for place, point in enumerate(points.values())}
    columns = [_log_loss(point, law.draws, measured) for point in points.values()]
    plan = suggest.choose(
        suggest.target(target or _far(law), law.laws, law.draws),
        np.stack(columns, axis=1),
        np.array([_noise(point, *fits) for point in points.values()]),
        np.array([sweep.cost(point) for point in points.values()]),
        [_needs(point, places) for point in points.values()],
        number,
        compute,
    )
    if not plan.steps:
        raise InputError(f"{compute:.3g} FLOPs do not pay for any candidate; give more")
    chosen = [names[run] for step in plan.steps for run in step.runs]
    rundir.write_json(directory / FILE, chosen)
    return Suggestion(plan, names, directory / FILE)


def suggested(candidates: Mapping[str, Experiment], directory: str | Path) -> dict[str, Experiment]:
    """The runs that were chosen last, by name.

    Raises:
      InputError: none were, or the experiment file does not know them any more.
    """
    file = Path(directory) / FILE
    if not file.is_file():
        raise InputError(f"{directory} holds no suggestion; make one with --suggest")
    points, names = sweep.with_sources(candidates), rundir.read_json(file)
    if unknown := [name for name in names if name not in points]:
        raise InputError(f"{file} names {unknown[0]}, which is no candidate of the experiment file; suggest anew")
    return {name: point for name in names if isinstance(point := points[name], Experiment)}


def lines(suggestion: Suggestion) -> list[str]:
    """The choices for a terminal: what each costs, and the interval of the target after it and those before it."""
    plan = suggestion.plan
    low, high = plan.target.interval(plan.steps[-1].deviation)
    size = max(abs(low), abs(high))
    digits = DIGITS + max(2, int(np.ceil(np.log10(size / max(high - low, 1e-9 * size)))))

    def words(deviation: float) -> str:
        low, high = plan.target.interval(deviation)
        return f"{low:.{digits}g} to {high:.{digits}g}"

    unit = 10.0 ** np.floor(np.log10(min(step.flops for step in plan.steps)))
    rows = [("run", "FLOPs", "90 % interval", f"narrower by, per {unit:.0e} FLOPs")]
    rows.append(("none yet", "", words(plan.deviation), ""))
    spent = 0.0
    before = plan.deviation
    for step in plan.steps:
        spent += step.flops
        rate = (1 - step.deviation / before) / step.flops * unit
        run = " after ".join(suggestion.names[index] for index in reversed(step.runs))
        rows.append((run, f"{step.flops:.2e}", words(step.deviation), f"{rate:.1%}"))
        before = step.deviation
    width = max(len(row[0]) for row in rows)
    head = f"To know {plan.target.name} = {plan.target.value:.4g} better, as far as the laws and their draws foretell:"
    body = [f"  {run:<{width}}  {flops:>9}  {interval:<22}  {rate}".rstrip() for run, flops, interval, rate in rows]
    share = 1 - plan.steps[-1].deviation / plan.deviation
    return [head, *body, f"{spent:.2e} FLOPs in all make the interval {share:.0%} narrower."]


def _far(law: basis.Basis) -> str:
    N, D = (BEYOND * law.runs[column][1] for column in ("N", "D"))
    return f"{count(N)}:{count(D)}:{law.laws.alone(N, D):.4g}"


def _log_loss(point: Experiment, draws: basis.Laws, measured: Mapping[str, float]) -> np.ndarray:
    """What each draw foretells of a run, log nats per token; its teacher's loss is measured or foretold too."""
    N, D = point.model.num_params, point.tokens
    if point.teacher is None:
        return np.log(draws.alone(N, D))
    teacher = point.sources["teacher"]
    if not isinstance(teacher, Experiment):
        raise InputError("a candidate's teacher is a directory; describe it, so that its size and tokens are known")
    known = measured.get(configs.identity(teacher))
    return np.log(draws.student(N, D, known or draws.alone(teacher.model.num_params, teacher.tokens)))


def _noise(point: Experiment, alone: Fit, distilled: Fit) -> float:
    return (alone if point.teacher is None else distilled).noise


def _needs(point: Experiment, places: Mapping[str, int]) -> tuple[int, ...]:
    """The teacher, where it is not trained yet, after its own."""
    sources = [source for source in point.sources.values() if isinstance(source, Experiment)]
    return tuple(
        dict.fromkeys(
            place
            for source in sources
            if configs.text(source) in places
            for place in (*_needs(source, places), places[configs.text(source)])
        )
    )
