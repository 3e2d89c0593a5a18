"""Sweeps: many experiments in one directory, each a process of its own with a run directory of its own.

The directory is the whole state of a sweep. A run with a result is never touched again, one without is continued, and a
student waits for its teacher, which is trained once for all who name it. Kill anything at any moment; the same command
goes on.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxdistill import analysis, caching, data, metrics, rundir
from jaxdistill import config as configs
from jaxdistill.cache.recipe import Recipe
from jaxdistill.errors import InputError
from jaxdistill.experiment import Experiment
from jaxdistill.launchers import Launcher, Local
from jaxdistill.launchers.launcher import LOST
from jaxdistill.launchers.process import last_line
from jaxdistill.scaling import flops
from jaxdistill.start import START

Work = Experiment | Recipe
"""What is run in a directory of its own: a training run or a cache, both decided by their configuration."""

FAILURES, LOSSES = 2, 5
"""A run has failed when it has done so twice, or when it has lost its machine five times without a step in between."""


def override_all(experiment: Experiment, assignments: Iterable[str]) -> Experiment:
    """The experiment with overrides applied to it and to the teacher it describes, so that both stay one sweep's."""
    assignments = list(assignments)
    changed = configs.override(experiment, assignments)

    def follow(source):
        return override_all(source, assignments) if isinstance(source, Experiment) else source

    described = {"teacher": changed.teacher, "start": changed.start}
    return dataclasses.replace(changed, **{name: x.following(follow) for name, x in described.items() if x is not None})


def with_sources(points: Mapping[str, Work]) -> dict[str, Work]:
    """The points and all that they describe and do not contain, teachers before caches and caches before students."""
    known = {configs.text(experiment) for experiment in points.values()}
    extra: dict[str, Work] = {}

    def visit(name: str, work: Work) -> None:
        for role, source in work.sources.items():
            if isinstance(source, Work) and configs.text(source) not in known:
                known.add(configs.text(source))
                visit(f"{name}-{role}", source)
                extra[f"{name}-{role}"] = source

    for name, experiment in points.items():
        visit(name, experiment)
    return extra | dict(points)


def cost(work: Work) -> float:
    """FLOPs of a run: three forward passes of the student and one of each frozen model for every token (Eq. 9).

    Of a cache, one of the teacher for every token; 0 where its configuration does not say how many those are.
    """

    def forward(model: Any) -> float:
        return flops.forward_flops(model.num_params, model.num_layers, model.width, work.data.length, model.vocab_size)

    own = 3 * forward(work.model) if isinstance(work, Experiment) else 0.0
    frozen = [source for role, source in work.sources.items() if isinstance(source, Experiment) and role != START]
    return work.tokens * (own + sum(forward(source.model) for source in frozen))


@dataclasses.dataclass
class Point:
    """One run of the sweep.

    Attributes:
      name: of its directory.
      experiment, directory: what runs where.
      needs: the points whose result it waits for.
      state: "waiting", "running", "finished", "failed".
      attempts: how often it was started by this sweep.
      failures, losses, reached: how often it failed itself; how often it was interrupted from outside since its last
        step, and how far it had come.
    """

    name: str
    experiment: Work
    directory: Path
    needs: tuple[str, ...] = ()
    state: str = "waiting"
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    reached: float = 0.0

    def ended(self, status: int | None) -> None:
        """Take note of how its process has ended: what comes of the point is its new state."""
        reached = self.progress()
        if status is LOST or status == 128 + signal.SIGTERM:
            self.losses = 1 if reached > self.reached else self.losses + 1
        else:
            self.failures += 1
        self.reached = reached
        done = status == 0 and rundir.is_finished(self.directory)
        again = self.failures < FAILURES and self.losses < LOSSES
        self.state = "finished" if done else "waiting" if again else "failed"

    def progress(self) -> float:
        """The share of its steps that has been logged."""
        if isinstance(self.experiment, Recipe):
            return caching.progress(self.directory)
        rows = metrics.read(self.directory / rundir.METRICS)
        return rows[-1]["step"] / self.experiment.steps if rows else 0.0


def plan(points: Mapping[str, Work], directory: Path) -> list[Point]:
    """The points in the order they should start: those others wait for first, then the longest."""
    points = with_sources(points)
    named = {configs.text(work): name for name, work in reversed(points.items())}

    def needs(work: Work) -> tuple[str, ...]:
        sources = [source for source in work.sources.values() if isinstance(source, Work)]
        return tuple(dict.fromkeys(named[configs.text(source)] for source in sources))

    planned = [Point(name, e, Path(directory) / name, needs(e)) for name, e in points.items()]
    wanted = {name for point in planned for name in point.needs}
    return sorted(planned, key=lambda point: (point.name not in wanted, -cost(point.experiment)))


def sweep(
    points: Mapping[str, Experiment],
    directory: str | Path,
    *,
    experiment_file: Path | None = None,
    launcher: Launcher | None = None,
    quiet: bool = False,
) -> Path:
    """Run every point to its end and write the table of runs; gives the path of runs.csv.

    Args:
      points: experiments by name; a name is a directory below `directory`.
      directory: of the sweep.
      experiment_file: kept in every run directory.
      launcher: what starts the runs, and where; default `launchers.Local()`, processes of this machine.
      quiet: no progress view.

    Raises:
      InputError: a point's directory holds another experiment, or runs failed twice; all others have finished then.
    """
    directory = Path(directory)
    if not points:
        raise InputError("the sweep has no points")
    with rundir.lock(directory):
        planned = plan(points, directory)
        for point in planned:
            rundir.prepare(point.directory, point.experiment, experiment_file)
            if rundir.is_finished(point.directory):
                point.state = "finished"
        _prepare_data(planned, quiet)
        _run_all(planned, launcher or Local(), quiet)
        table = analysis.write_table(directory)
    if failed := [point for point in planned if point.state != "finished"]:
        first = failed[0]
        said = last_line(first.directory)
        raise InputError(f"{len(failed)} of {len(planned)} runs did not finish; the first is {first.directory}: {said}")
    return table


def _prepare_data(planned: list[Point], quiet: bool) -> None:
    """Tokenize once what the runs share, before they start together and each do it for themselves."""
    unfinished = [point.experiment.data for point in planned if point.state != "finished"]
    for tokens in {configs.text(tokens): tokens for tokens in unfinished}.values():
        data.prepare(tokens, quiet=quiet)


def _run_all(planned: list[Point], launcher: Launcher, quiet: bool) -> None:
    points = {point.directory: point for point in planned}
    needed = any(point.state != "finished" for point in planned)
    with launcher if needed else contextlib.nullcontext(), _terminating(), _View(planned, launcher.verb, quiet) as view:
        while True:
            finished = {point.name for point in planned if point.state == "finished"}
            ready = [point for point in planned if point.state == "waiting" and finished.issuperset(point.needs)]
            while ready and launcher.free():
                point = ready.pop(0)
                point.state, point.attempts = "running", point.attempts + 1
                launcher.start(point.directory)
                view.started(point)
            if not any(point.state == "running" for point in planned):
                return  # all done, or what is left waits for a run that failed
            time.sleep(0.1)
            for directory, status in launcher.finished():
                points[directory].ended(status)
                view.ended(points[directory])
            view.update()


@contextlib.contextmanager
def _terminating() -> Generator[None]:
    """SIGTERM stops a sweep as Ctrl-C does."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _View:
    """One view of the whole sweep: bars in a terminal, a line an event elsewhere."""

    def __init__(self, planned: list[Point], verb: str, quiet: bool):
        self._planned, self._verb = planned, verb
        self._costs = {point.name: cost(point.experiment) for point in planned}
        self._console = Console(stderr=True, quiet=quiet)
        self._live = self._console.is_terminal and not quiet
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        self._bars = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, disable=not self._live
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_View":
        self._bars.start()
        self._total = self._bars.add_task(self._summary(), total=sum(self._costs.values()))
        self._say(self._summary())
        return self

    def __exit__(self, *exception) -> None:
        self._bars.stop()

    def _summary(self) -> str:
        done = sum(point.state == "finished" for point in self._planned)
        return f"sweep: {done} of {len(self._planned)} runs finished"

    def _say(self, line: str) -> None:
        if not self._live:
            self._console.print(line, highlight=False)

    def started(self, point: Point) -> None:
        again = " again" if point.attempts > 1 else ""
        self._say(f"  {self._verb} {point.name}{again}")
        self._tasks[point.name] = self._bars.add_task(f"  {point.name}", total=1.0)

    def ended(self, point: Point) -> None:
        self._bars.remove_task(self._tasks.pop(point.name))
        if point.state != "finished":
            self._console.print(f"  {point.name} stopped: {last_line(point.directory)}", style="red", highlight=False)
        self._say(f"{self._summary()} ({point.name})")

    def update(self) -> None:
        """Bring the bars up to what the runs have logged."""
        if not self._live:
            return
        progress = {point.name: 1.0 if point.state == "finished" else 0.0 for point in self._planned}
        for point in self._planned:
            if point.state == "running":
                progress[point.name] = point.progress()
                self._bars.update(self._tasks[point.name], completed=progress[point.name])
        done = sum(self._costs[name] * share for name, share in progress.items())
        self._bars.update(self._total, completed=done, description=self._summary())
