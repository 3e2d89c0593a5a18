"""The loop of one run: data, step, evaluation, checkpoint, log. What no experiment should have to copy.

A run is decided by its Experiment alone. Killed at any moment and started again with the same command, it continues
from its last checkpoint and ends with the same parameters.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdistill import checkpoint, data, evals, frozen, metrics, rundir
from jaxdistill import config as configs
from jaxdistill.apart import Apart
from jaxdistill.cache.reader import Cache
from jaxdistill.errors import InputError, Interrupted
from jaxdistill.experiment import Experiment
from jaxdistill.int8 import MEASURED, to_int8
from jaxdistill.parallel import rules, together
from jaxdistill.program import Program, build
from jaxdistill.scaling import flops
from jaxdistill.start import START, divide
from jaxdistill.step import State
from jaxdistill.teacher import BASE, CACHE, TEACHER, Across, Cached


def run(
    experiment: Experiment,
    directory: str | Path,
    *,
    experiment_file: Path | None = None,
    cache: Path | None = None,
    quiet: bool = False,
    patience: float = 0.0,
) -> dict[str, Any]:
    """Train to the end, from the start or from the last checkpoint, and give the result.

    In a job of several processes (`parallel.hosts`) all of them call it, with a directory that they share.

    Args:
      experiment: what to run.
      directory: the run directory; made where it is not there, refused where it is another experiment's.
      experiment_file: kept beside the configuration.
      cache: of prepared data; default as `data.prepare`.
      quiet: no progress bar.
      patience: seconds to wait for another process to leave the directory.

    Returns:
      The content of result.json: validation loss in nats per token, bits per byte, tokens, FLOPs, seconds, ...

    Raises:
      InputError: anything a user can mend.
      Interrupted: SIGTERM or SIGINT arrived; the state is saved.
    """
    directory = Path(directory)
    with rundir.claim(directory, experiment, experiment_file, patience):
        if not together.once(lambda: rundir.is_finished(directory)):
            _train(experiment, directory, cache, quiet or not together.is_first())
        return together.once(lambda: rundir.read_result(directory))


def _train(experiment: Experiment, directory: Path, cache: Path | None, quiet: bool) -> None:
    sources = frozen.find(experiment.sources, directory)
    dataset = together.first(lambda: data.prepare(experiment.data, cache, quiet))
    check_vocabulary(experiment, dataset)
    if together.is_first():
        rundir.write_json(directory / "env.json", rundir.environment())
        dataset.tokenizer.save(directory / "tokenizer")
    mesh, teacher_mesh = experiment.meshes()
    kept, apart, start = None, None, sources.pop(START, None)
    if isinstance(experiment.teacher, Cached):
        kept = frozen.open_cache(sources.pop(CACHE), experiment.teacher, experiment, dataset)
    tokenizer, marks = dataset.tokenizer, None
    if kept is not None and kept.holds_chunks:
        marks = (None, frozen.marks_of(dataset.tokenizer))
    if isinstance(experiment.teacher, Across):
        across = sources[TEACHER], experiment.teacher, experiment.data, dataset, cache, quiet
        dataset, marks = together.first(lambda: frozen.beside(*across))
        tokenizer = None
    of_teacher = teacher_mesh, rules.named(experiment.teacher_table)
    loaded = {name: frozen.load(path, experiment.dtype, tokenizer, *of_teacher) for name, path in sources.items()}
    narrowed = _narrow(experiment, loaded, dataset, *of_teacher) if experiment.quantised else {}
    if experiment.placement is not None:
        apart = Apart(experiment, *loaded.pop(TEACHER), marks=marks)
    teachers = {name: model for name, (model, _) in loaded.items()}
    validation = kept.validation if kept is not None else apart.validation if apart is not None else None
    program = build(experiment, teachers, validation=validation, marks=marks)
    teacher_params = {name: params for name, (_, params) in loaded.items()}
    if kept is not None and kept.needs_head:
        layout = mesh, rules.named(experiment.table)
        teacher_params[TEACHER] = frozen.output_layer(frozen.teacher_of(kept.directory), experiment.dtype, *layout)
    where = directory / (rundir.PARTS if program.base else rundir.CHECKPOINTS)
    checkpoints = checkpoint.Checkpoints(where, configs.identity(experiment))
    with contextlib.closing(checkpoints):
        trained = None
        if start is not None and (program.base or checkpoints.latest() is None):
            trained, untrained = _parts(experiment, start, dataset.tokenizer)
            teacher_params |= {BASE: frozen.base_of(untrained, experiment, teacher_params.get(TEACHER))}
        if checkpoints.latest() is None:
            state, seconds = _begin(experiment, program, start, trained), 0.0
        else:
            state, numbers = checkpoints.restore(program.abstract)
            seconds = numbers["seconds"]
        trainer = Trainer(experiment, directory, program, dataset, teacher_params, kept, apart, checkpoints, seconds)
        scores = trainer.train(state, quiet)
        checkpoints.wait()
        if program.base and start is not None:
            last, _ = checkpoints.restore(program.abstract)
            frozen.write_whole(directory, start, experiment, dataset.tokenizer, last.params)
    result = _result(experiment, dataset, scores, trainer.seconds())
    if start is not None:
        result["start"] = start.name
    if program.base:
        result["N_trained"] = sum(math.prod(x.shape) for x in jax.tree.leaves(program.abstract.params))
    if TEACHER in sources:
        result |= frozen.facts(sources[TEACHER]) | narrowed
    elif kept is not None:
        result |= {"cache": kept.directory.name, **kept.manifest["teacher"]["facts"]}
    together.once(lambda: rundir.write_json(directory / rundir.RESULT, result))


def _narrow(experiment: Experiment, loaded: dict[str, Any], dataset: data.Dataset, *of_teacher: Any) -> dict[str, Any]:
    """Puts the loaded teacher into int8, and gives what the result says of it."""
    model, params = loaded.pop(TEACHER)
    batches = (dataset.batch(experiment.batch, experiment.seed, step) for step in range(MEASURED))
    own = (batch if batch.beside is None else batch.beside.batch for batch in batches)
    params, facts = to_int8(model, params, own, experiment.dtype, *of_teacher)
    loaded[TEACHER] = model, params
    return {"teacher_int8": facts}


def _parts(experiment: Experiment, source: Path, tokenizer: data.Tokenizer) -> tuple[dict, dict]:
    """The parameters to be trained and those that stay, of the run that this one starts from."""
    assert experiment.start is not None
    whole = frozen.starting(source, experiment.start, experiment, tokenizer)
    return divide(experiment.start, whole, jax.random.key(experiment.seed))


def _begin(experiment: Experiment, program: Program, source: Path | None, trained: dict | None) -> State:
    """The state before the first step, random or with parameters of the finished run that this one starts from."""
    if experiment.start is None or source is None or trained is None:
        return program.init(jax.random.key(experiment.seed))
    return frozen.begin(source, experiment.start, experiment, program, trained)


def check_vocabulary(experiment: Experiment, dataset: data.Dataset) -> None:
    """InputError where the model and the tokenizer count different tokens."""
    if dataset.vocab_size != experiment.model.vocab_size:
        raise InputError(
            f"the tokenizer has {dataset.vocab_size} tokens and the model {experiment.model.vocab_size}: "
            f"set model.vocab_size={dataset.vocab_size}"
        )


@dataclasses.dataclass
class Trainer:
    """The state of the loop that is not the State."""

    experiment: Experiment
    directory: Path
    program: Program
    dataset: data.Dataset
    teacher_params: Any
    kept: Cache | None
    apart: Apart | None
    checkpoints: checkpoint.Checkpoints
    seconds_before: float

    def __post_init__(self):
        self._began = time.monotonic()

    def seconds(self) -> float:
        """Wall time of the run so far, over all its starts."""
        return self.seconds_before + time.monotonic() - self._began

    def train(self, state: State, quiet: bool) -> dict[str, float]:
        """From the state's step to the last one, and the validation scores at the end."""
        experiment, start = self.experiment, int(state.step)
        writer = metrics.Writer(self.directory, rundir.METRICS, start) if together.is_first() else metrics.Silent()
        then = self.kept.attach if self.kept is not None else None
        rows = self.program.rows
        batches = self.dataset.batches(experiment.batch, experiment.seed, start, experiment.steps, rows, then)
        with contextlib.closing(writer), together.stopping() as asked, _bar(experiment, start, quiet) as advance:
            log = _Log(writer, experiment, start)
            placed = map(self.program.place, batches) if self.apart is None else self.apart.training(batches, start)
            for step, batch in enumerate(placed, start):
                rates, coef = self._inputs(step)
                state, values = self.program.step(state, self.teacher_params, batch, rates, coef)
                if self.apart is not None:
                    self.apart.keep_pace(values["loss"])
                advance()
                done = step + 1
                if done % experiment.log_every == 0 or done == experiment.steps:
                    log.note(done, values | rates)
                if done == experiment.steps:
                    break
                if experiment.evaluate_every and done % experiment.evaluate_every == 0:
                    log.flush()
                    scores = self.evaluate(state)
                    writer.write(done, {f"validation/{name}": value for name, value in scores.items()})
                    state = self._heed(state, scores)
                if number := asked(done):  # after the evaluation, which the continued run will not make again
                    log.flush()
                    self._save(state, done)
                    self.checkpoints.wait()
                    raise Interrupted(number, done, experiment.steps)
                if experiment.checkpoint_every and done % experiment.checkpoint_every == 0:
                    log.flush()
                    self._save(state, done)
            log.flush()
            scores = self.evaluate(state)
            if start < experiment.steps:  # else a run that was killed after its last checkpoint, which follows the row
                writer.write(experiment.steps, {f"validation/{name}": value for name, value in scores.items()})
                self._save(state, experiment.steps)
        return scores

    def _inputs(self, step: int) -> tuple[dict, dict]:
        """Rates and coefficients of a step: numbers, so that schedules and lengths share one compiled program."""
        steps = self.experiment.steps
        coef = {name: np.float32(term.at(step, steps)) for name, term in self.experiment.objective.items()}
        if self.experiment.controllers:
            coef["steps"] = np.float32(steps)
        return self.experiment.optim.rates(step, steps), coef

    def _heed(self, state: State, scores: dict[str, float]) -> State:
        """The state with what its controllers make of an evaluation."""
        control = state.control | {
            name: controller.on_evaluation(state.control[name], scores["cross_entropy"])
            for name, controller in self.experiment.controllers.items()
        }
        return dataclasses.replace(state, control=control)

    def _save(self, state: State, done: int) -> None:
        self.checkpoints.save(state, done, seconds=self.seconds())

    def evaluate(self, state: State) -> dict[str, float]:
        """Means over the validation windows, in nats per token."""
        batches = self.dataset.validation(self.experiment.batch, self.program.rows)
        if self.kept is not None and self.kept.holds_validation:
            batches = map(self.kept.attach, batches)
        batches = map(self.program.place, batches) if self.apart is None else self.apart.validating(batches)
        scores = evals.evaluate(self.program.evaluate, state.params, self.teacher_params, batches)
        if "sampled_cross_entropy" in scores:
            scores["forward_kl"] = scores["sampled_cross_entropy"] - scores["teacher_entropy"]
        return scores


class _Log:
    """Writes a row one logged step late: its values are ready by then, so the devices never wait for the log.

    Whatever makes earlier steps final, a checkpoint above all, calls `flush` first: no row may be lost behind it.
    """

    def __init__(self, writer: metrics.Writer | metrics.Silent, experiment: Experiment, start: int):
        self._writer, self._tokens = writer, experiment.batch * experiment.data.length
        self._pending: tuple[int, dict] | None = None
        self._clock = (start, time.monotonic())

    def note(self, done: int, values: dict) -> None:
        """The values of one step, as device arrays."""
        self.flush()
        self._pending = (done, values)

    def flush(self) -> None:
        """Write what is pending. Raises InputError where the loss is not a number any more."""
        if self._pending is None:
            return
        done, values = self._pending
        row = {name: float(value) for name, value in values.items()}
        if not math.isfinite(row["loss"]):
            raise InputError(f"the loss is {row['loss']} at step {done}; try a lower optim.peak or more optim.warmup")
        (before, then), now = self._clock, time.monotonic()
        self._writer.write(done, row | {"tokens_per_second": (done - before) * self._tokens / (now - then)})
        self._pending, self._clock = None, (done, now)


@contextlib.contextmanager
def _bar(experiment: Experiment, start: int, quiet: bool) -> Generator[Callable[[], None]]:
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, disable=quiet) as progress:
        task = progress.add_task("", total=experiment.steps, completed=start)
        yield lambda: progress.advance(task)


def _result(experiment, dataset, scores: dict[str, float], seconds: float) -> dict:
    model = experiment.model
    forward = flops.forward_flops(
        model.num_params, model.num_layers, model.width, experiment.data.length, model.vocab_size
    )
    return {
        "identity": configs.identity(experiment),
        "loss": scores["cross_entropy"],
        "bits_per_byte": evals.bits_per_byte(scores["cross_entropy"], dataset.bytes_per_token),
        "validation": scores,
        "N": model.num_params,
        "N_total": model.num_params_total,
        "D": experiment.tokens,
        "flops": flops.training_flops(forward, experiment.tokens),
        "epochs": experiment.tokens / (dataset.num_windows * experiment.data.length),
        "seed": experiment.seed,
        "seconds": seconds,
        "protocol": experiment.protocol,
        "tokenizer": dataset.tokenizer.fingerprint,
        "data": dataset.manifest,
    }
