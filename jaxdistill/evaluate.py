"""Evaluation of finished runs and imported models: of one, or of all in a directory.

A run is measured on the validation windows of its own data, beside its own teacher; on request also on further texts
and on questions. The results go to `eval.json` and to a page that opens offline, `eval.html`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdistill import analysis, data, evals, frozen, rundir
from jaxdistill.cache.recipe import is_cache
from jaxdistill.errors import InputError
from jaxdistill.evals import continuations, page, tasks, texts
from jaxdistill.evals.calibration import BINS
from jaxdistill.experiment import Experiment
from jaxdistill.generate import Sampling, make_generate
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.program import head_sharding, precision
from jaxdistill.teacher import CACHE, TEACHER

LONGEST = 1024
ROWS = 8  # of a batch, where no training says how many
Track = Callable[[Iterable[Any], int, str], Iterator[Any]]
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be found of every run.

    Attributes:
      split: of its data: "validation", or "train" to see how far it has learnt its text by heart.
      windows: at most so many windows of each text, spread evenly; None for as many as the run validates on, and for
        all of other texts.
      others: further runs of the same tokenizer; what is measured is then the ensemble of each run with them.
      average: what an ensemble averages, "probability" or "logit".
      teacher: the run to compare with; None for each run's own, "none" for none at all.
      texts: files of further text by name, as `data.Files` takes them.
      questions: files of questions, as `evals.tasks` reads them.
      harness: tasks of lm-eval by name, which the extra `eval` brings.
      harness_tasks: a directory of task files for lm-eval; None for those that come with it.
      length: inputs in a window of other texts and of questions; None for that of the training, or for the longest
        context of an imported model, up to 1024.
      bins: of the reliability diagrams.
      mesh: arrangement of the devices; it need not be that of the training.
    """

    split: Literal["validation", "train"] = "validation"
    windows: int | None = None
    others: Sequence[Path] = ()
    average: Literal["probability", "logit"] = "probability"
    teacher: str | None = None
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    questions: Sequence[Path] = ()
    harness: Sequence[str] = ()
    harness_tasks: Path | None = None
    length: int | None = None
    bins: int = BINS
    mesh: Mesh = Mesh()

    def __post_init__(self):
        for name in ("windows", "length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.split in self.texts:
            raise InputError(f"the run's own {self.split} split has that name already: call the text otherwise")


def evaluate(target: str | Path, request: Request = Request(), *, quiet: bool = False) -> dict[str, Record]:
    """What `request` asks of a run directory, or of every finished run in a sweep directory, by name of the run.

    Raises InputError where there is no such run, its data or its teacher have changed or gone, or a text or a file of
    questions cannot be read.
    """
    directories = find(Path(target))
    if request.harness:
        from jaxdistill.evals import harness  # noqa: F401  (says what to install, before anything is done)
    questions = {str(path): tasks.read(path) for path in request.questions}
    prepare = functools.cache(functools.partial(data.prepare, quiet=quiet))
    with _progress(quiet) as bars:
        return {
            directory.name: _Subject(directory, request, prepare, _tracker(bars, directory.name)).record(questions)
            for directory in directories
        }


def find(target: Path) -> list[Path]:
    """The run directory itself, or the directories of all finished runs below it; InputError where there are none."""
    if (target / rundir.CONFIG).is_file():
        return [_finished_run(target)]
    found = [config.parent for config in sorted(target.glob(f"*/{rundir.CONFIG}")) if not is_cache(config.parent)]
    if not (finished := [directory for directory in found if rundir.is_finished(directory)]):
        raise InputError(f"{target} is neither a run directory nor holds finished runs: give it one")
    return finished


def _finished_run(directory: Path) -> Path:
    if is_cache(directory):
        raise InputError(f"{directory} is a cache of a teacher and no run: give the directory of a run")
    rundir.read_result(directory)
    return directory


def find_teacher(directory: Path) -> Path | None:
    """The run that taught a run, itself or through a cache; None where there is none. InputError where it is gone."""
    try:
        found = frozen.find(rundir.read_config(directory).sources, directory)
    except InputError as error:
        raise InputError(f"{error}; name another --teacher, or none") from error
    return find_teacher(found[CACHE]) if CACHE in found else found.get(TEACHER)


def write(records: Mapping[str, Record], out: Path) -> list[Path]:
    """Write `eval.json` and then `eval.html` into a directory, each whole or not at all.

    Raises InputError where matplotlib is missing, which draws the page's figures.
    """
    out.mkdir(parents=True, exist_ok=True)
    rundir.write_json(out / "eval.json", {"environment": rundir.environment(), "runs": records})
    rundir.write_atomically(out / "eval.html", page.html(records))
    return [out / "eval.json", out / "eval.html"]


class _Subject:
    """One run with its data and its teacher on the devices, and its compiled functions."""

    def __init__(self, directory: Path, request: Request, prepare: Callable[[data.Tokens], data.Dataset], track: Track):
        self.run, self.request, self._track = analysis.load_run(directory, mesh=request.mesh), request, track
        self.directory, self.tokenizer, experiment = directory, self.run.tokenizer, self.run.experiment
        trained = isinstance(experiment, Experiment)  # else somebody else has trained it, on text that is not known
        self.dataset = prepare(experiment.data) if trained else None
        if self.dataset is not None and self.dataset.tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise InputError(
                f"the text or tokenizer that {directory} was trained on has changed since: its tokens would be others"
            )
        if not (trained or request.texts or request.questions or request.harness):
            raise InputError(f"{directory} is an imported model and has no text of its own: name one, or questions")
        self._length = request.length or (experiment.data.length if trained else min(experiment.positions, LONGEST))
        self._mesh = request.mesh.build()
        (rows,) = rules.parts("B", self._mesh)
        self._size = -(-(experiment.batch if trained else ROWS) // rows) * rows
        self._precise = precision(experiment.dtype)
        self._compile()

    def _compile(self) -> None:
        run, request, sharding = self.run, self.request, head_sharding(self._mesh)
        self._model, own = analysis.with_others(run, request.others, request.average, request.mesh)
        self.teacher, model, params = self._teacher(), None, None
        if self.teacher is not None:
            model, params = frozen.load(self.teacher, run.experiment.dtype, self.tokenizer, self._mesh)
            model = dataclasses.replace(model, shard=rules.constrain(self._mesh))
        sums = self._precise(jax.jit(evals.make_sums(self._model, model, bins=request.bins, sharding=sharding)))
        likelihoods = self._precise(jax.jit(continuations.make_likelihoods(self._model, sharding=sharding)))
        self._params = own
        self._sums = lambda batch: sums(own, params, self._place(batch))
        self._likelihoods = lambda batch: likelihoods(own, self._place(batch))

    def _teacher(self) -> Path | None:
        asked = self.request.teacher
        if asked is not None:
            return None if asked == "none" else _finished_run(Path(asked))
        return None if self.dataset is None else find_teacher(self.directory)

    def _place(self, batch: data.Batch) -> data.Batch:
        if self._mesh.size == 1:
            return batch
        return jax.device_put(batch, rules.of_batch(batch, self._mesh))

    def record(self, questions: Mapping[str, Sequence[Any]]) -> Record:
        """Everything that the request asks, as JSON can hold it."""
        result = rundir.read_result(self.directory)
        return {
            **{name: result[name] for name in ("identity", "N", "D")},
            "teacher": None if self.teacher is None else self.teacher.name,
            "ensemble": [str(path) for path in self.request.others],
            "scores": {name: self._scored(name, text) for name, text in self._texts()},
            "questions": {name: self._answered(name, asked) for name, asked in questions.items()},
            "harness": self._harness() if self.request.harness else {},
        }

    def _texts(self) -> Iterator[tuple[str, texts.Text]]:
        split, windows = self.request.split, self.request.windows
        if self.dataset is not None:
            yield split, texts.of_split(self.dataset, split).at_most(windows or self.dataset.num_validation_windows)
        for name, path in self.request.texts.items():
            yield name, texts.of_files(path, self.tokenizer, self._length).at_most(windows)

    def _scored(self, name: str, text: texts.Text) -> Record:
        total = -(-text.number // self._size)
        found = evals.score(self._sums, self._track(text.batches(self._size), total, name))
        return {
            "windows": text.number,
            "tokens": found.tokens,
            **found.mean,
            "bits_per_byte": evals.bits_per_byte(found.mean["loss"], text.bytes_per_token),
            **{f"{'' if who == 'model' else 'teacher_'}ece": diagram.ece for who, diagram in found.reliability.items()},
            "reliability": {who: dataclasses.asdict(diagram) for who, diagram in found.reliability.items()},
        }

    def _answered(self, name: str, questions: Sequence[Any]) -> Record:
        return tasks.answer(questions, self.tokenizer, self._likelihoods, **self._windows(name))

    def _harness(self) -> Record:
        from jaxdistill.evals import harness

        def generator(sampling: Sampling | None, max_tokens: int) -> Callable[..., Any]:
            made = make_generate(self._model, sampling, (self.tokenizer.eos_id,), max_tokens)
            return functools.partial(self._precise(jax.jit(made)), self._params)

        windows = self._windows("lm-eval")
        asked = harness.Model(self.tokenizer, self._likelihoods, generator=generator, **windows)
        return harness.evaluate(asked, self.request.harness, self.request.harness_tasks)

    def _windows(self, what: str) -> Record:
        """How continuations are scored."""
        return {"size": self._size, "limit": self._length, "track": lambda made: self._track(made, len(made), what)}


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet)


def _tracker(bars: Progress, run: str) -> Track:
    def track(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        task = bars.add_task(f"{run}: {what}", total=total)
        for item in items:
            yield item
            bars.advance(task)
        bars.remove_task(task)

    return track
