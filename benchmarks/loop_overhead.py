"""How much of a run is not its jitted step, at the sizes of the laptop preset?

    python benchmarks/loop_overhead.py       # two cores, about ten minutes

Two questions, because they have different answers. Inside the loop: the wall time of `run.Trainer.train` (without the
evaluation and the checkpoint at its end) against the sum of its steps, run alone on the same batches and each waited
for. What is left is the loop's own: batches, rates, logging, progress bar, dispatch. Around it: where the seconds of a
short run go, in a fresh process, with nothing in the caches and again with everything there.

Expected before measuring: a step of 2 to 20 ms; 0.1 to 0.3 ms of Python and grain a step beside it, which the devices
hide where the step is long, so less than 10 % for every size and nothing to see from d48 on. Around the loop: two
seconds of imports, and a compilation of several seconds that the second run finds in the cache.

Steps and loops take turns and the least of several rounds counts, since the machine may be shared.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Generator
from typing import Any

import report

STEPS = 100
ROUNDS = 5
SCALING_LAW = pathlib.Path(__file__).parents[1] / "experiments" / "scaling_law.py"


@contextlib.contextmanager
def stopwatch(seconds: dict[str, float], name: str) -> Generator[None]:
    """Adds the time spent inside to seconds[name]."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def experiment(size: str, kind: str):
    """A run of the laptop preset's size, `STEPS` long; "distilled" means by a d48 teacher."""
    from jaxdistill.experiment import load_module

    laws = load_module(SCALING_LAW)
    preset = laws.PRESETS["laptop"]()
    tokens = STEPS * preset.base.batch * preset.base.data.length
    if kind == "supervised":
        return laws.supervised(preset, size, tokens, "overhead")
    return laws.distilled(preset, size, tokens, laws.supervised(preset, "d48", tokens, "overhead"), "overhead")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A program that is ready to train: `loop` trains once through `run.Trainer` and gives its seconds by part."""

    experiment: Any
    program: Any
    dataset: Any
    teacher_params: Any
    fresh_state: Callable

    def loop(self) -> dict[str, float]:
        from jaxdistill import checkpoint, run

        seconds: dict[str, float] = {}

        class Timed(run.Trainer):
            def evaluate(self, state):
                with stopwatch(seconds, "evaluation"):
                    return super().evaluate(state)

            def _save(self, state, done):
                with stopwatch(seconds, "checkpoint"):
                    super()._save(state, done)
                    self.checkpoints.wait()

        with tempfile.TemporaryDirectory() as name:
            directory, state = pathlib.Path(name), self.fresh_state()
            with contextlib.closing(checkpoint.Checkpoints(directory / "checkpoints", "overhead")) as checkpoints:
                trainer = Timed(
                    self.experiment, directory, self.program, self.dataset, self.teacher_params, None, checkpoints, 0.0
                )
                with stopwatch(seconds, "training"):
                    trainer.train(state, quiet=True)
        seconds["training"] -= seconds["evaluation"] + seconds["checkpoint"]
        return seconds

    def steps(self) -> float:
        """Seconds of the same steps alone, each waited for, their inputs at hand."""
        import jax
        import numpy as np

        e, total, state = self.experiment, 0.0, self.fresh_state()
        batches = list(self.dataset.batches(e.batch, e.seed, 0, e.steps))
        for step, batch in enumerate(batches):
            coef = {name: np.float32(term.at(step, e.steps)) for name, term in e.objective.items()}
            arguments = self.teacher_params, self.program.place(batch), e.optim.rates(step, e.steps), coef
            start = time.perf_counter()
            state, _ = jax.block_until_ready(self.program.step(state, *arguments))
            total += time.perf_counter() - start
        return total


def prepare(experiment, cache: pathlib.Path, seconds: dict[str, float]) -> Subject:
    """Everything before the first step of the loop, timed by part. A teacher is as untrained as its student."""
    with stopwatch(seconds, "imports"):
        import jax

        from jaxdistill import data
        from jaxdistill.program import build, make_model
    with stopwatch(seconds, "data"):
        dataset = data.prepare(experiment.data, cache, quiet=True)
    with stopwatch(seconds, "compilation"):
        teachers = {name: make_model(source) for name, source in experiment.sources.items()}
        teacher_params = {name: jax.jit(model.init)(jax.random.key(1)) for name, model in teachers.items()}
        program = build(experiment, teachers)

        def fresh_state():
            return jax.block_until_ready(program.init(jax.random.key(experiment.seed)))

        subject = Subject(experiment, program, dataset, teacher_params, fresh_state)
        first = dataclasses.replace(experiment, steps=1)
        dataclasses.replace(subject, experiment=first).steps()
        (batch, *_) = dataset.validation(experiment.batch)
        jax.block_until_ready(program.evaluate(fresh_state().params, teacher_params, program.place(batch)))
    return subject


def overhead_table(cache: pathlib.Path) -> report.Table:
    rows, cases = [], list(itertools.product(("d16", "d32", "d48", "d64"), ("supervised", "distilled")))
    for size, kind in report.progress(cases, "loops"):
        subject = prepare(experiment(size, kind), cache, {})
        rounds = [(subject.steps(), subject.loop()["training"]) for _ in range(ROUNDS)]
        steps, loop = (1e3 * min(times) / STEPS for times in zip(*rounds, strict=True))
        rows.append((size, kind, f"{steps:.2f}", f"{loop:.2f}", f"{100 * (loop - steps) / loop:+.1f} %"))
    columns = ("size", "kind", "step alone, ms", "step in the loop, ms", "not the step")
    return report.Table("Inside the loop", columns, rows)


def whole_run(size: str, kind: str, cache: pathlib.Path) -> dict[str, float]:
    """Seconds of a short run by part; to be called in a fresh process."""
    seconds: dict[str, float] = {}
    with stopwatch(seconds, "imports"):
        import jax

        from jaxdistill import run  # noqa: F401
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    subject = prepare(experiment(size, kind), cache, seconds)
    return seconds | subject.loop()


def parts_table(cache: pathlib.Path) -> report.Table:
    rows, cases = [], [("d16", "supervised"), ("d64", "distilled")]
    for (size, kind), state in report.progress(list(itertools.product(cases, ("cold", "warm"))), "whole runs"):
        seconds = report.in_fresh_process(whole_run, size, kind, cache / size)
        rows.append((size, kind, state, *(f"{s:.1f}" for s in seconds.values()), f"{sum(seconds.values()):.1f}"))
    columns = ("size", "kind", "caches", *seconds, "sum")
    return report.Table(f"A run of {STEPS} steps, seconds", columns, rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        cache = pathlib.Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # the caches of this benchmark are its own
        tables = [parts_table(cache), overhead_table(cache)]
    report.write(
        "loop_overhead", f"{STEPS} steps; least of {ROUNDS} rounds in which steps and loops take turns", tables
    )


if __name__ == "__main__":
    main()
