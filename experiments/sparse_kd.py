"""How much of a teacher's distribution does a student need: its top K, random draws, or all of it?

    jaxdistill sweep experiments/sparse_kd.py
    jaxdistill report experiments/sparse_kd.py

One teacher reads the text once for each cache, and 23 students of one size see the same tokens: 50 minutes on two
busy cores. The comparison of "Sparse Logit Sampling" (arXiv 2503.16870, tables 1 to 6), with its fixes and with two
samplers that the paper does not have. Expected: students of the top K without the rest end below plain training while
K is small and are too sure of themselves; draws of as few entries do not, and come close to the whole distribution.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill import caching, data, evaluate, frozen, rundir
from jaxdistill.analysis import Run, load_run
from jaxdistill.cache.samplers import PPS, Draws, Sampler, Top
from jaxdistill.evals.figures import svg
from jaxdistill.evals.gradients import compare, make_gradient
from jaxdistill.experiment import Experiment
from jaxdistill.losses import methods
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.models import ladder
from jaxdistill.optim import AdamW
from jaxdistill.program import build
from jaxdistill.scaling import page
from jaxdistill.scaling.style import FAINT, INK, canvas, in_style, plain_log_ticks, styles
from jaxdistill.teacher import Cached, Online

VOCABULARY = 512
SEEDS = (0, 1, 2)
DATA = data.Tokens(
    data.Stdlib(), data.SentencePiece(VOCABULARY, characters=2_000_000), length=128, validation_windows=512
)


def teacher() -> Experiment:
    """Two layers of width 64, trained on the data."""
    return Experiment(
        model=ladder.laptop(64, VOCABULARY),
        data=DATA,
        objective={"ce": Term(CrossEntropy())},
        steps=2000,
        batch=8,
        optim=AdamW(peak=4e-2, warmup=100),
        checkpoint_every=500,
    )


def student(objective: dict[str, Term], teacher: Online | Cached | None = None, seed: int = 0) -> Experiment:
    """Width 32, and what reaches it of the teacher."""
    return Experiment(
        model=ladder.laptop(32, VOCABULARY),
        data=DATA,
        objective=objective,
        steps=1500,
        batch=8,
        optim=AdamW(peak=4e-2, warmup=100),
        checkpoint_every=500,
        teacher=teacher,
        seed=seed,
        protocol="sparse",
    )


def drawn(keep: Sampler, seed: int = 0) -> Experiment:
    """A student of random entries."""
    return student(methods.random_sampling_kd(), Cached(teacher(), keep), seed)


def top(k: int, tail: Any) -> Experiment:
    """A student of the first k entries of one cache of 50, with what is made of the rest."""
    return student(methods.top_k(tail), Cached(teacher(), Top(50), first=k))


def sweep() -> dict[str, Experiment]:
    """The ends, cross-entropy and all of the teacher, and what lies between."""
    runs = {"teacher": teacher()}
    for seed in SEEDS:
        runs[f"ce-{seed}"] = student({"ce": Term(CrossEntropy())}, seed=seed)
        runs[f"full-{seed}"] = student({"kl": Term(ForwardKL())}, Online(teacher()), seed)
        runs[f"draws50-{seed}"] = drawn(Draws(50), seed)
    for k in (3, 12, 25, 50):
        runs[f"top{k}-renormalised"] = top(k, "renormalised")
    for tail in ("bucket", "uniform", "label"):
        for k in (12, 50):
            runs[f"top{k}-{tail}"] = top(k, tail)
    for rounds in (3, 12):
        runs[f"draws{rounds}"] = drawn(Draws(rounds))
    runs["systematic12"] = drawn(Draws(12, "systematic"))
    runs["pps12"] = drawn(PPS(12))
    return runs


def config() -> Experiment:
    """Fifty draws a token, which are about a dozen different ids."""
    return drawn(Draws(50))


# ---------------------------------------------------------------------------------------------------------------------
# The report


def report(directory: Path) -> list[Path]:
    """A table, two figures and a page of the finished sweep in a directory; about five minutes on two cores."""
    records = evaluate.evaluate(directory, evaluate.Request(teacher=str(directory / "teacher")))
    scores = {name: record["scores"]["validation"] for name, record in records.items()}
    runs = {name: load_run(directory / name) for name in scores if name != "teacher"}
    loss = {name: scores[name]["loss"] for name in runs}
    floor, ceiling = (statistics.mean(loss[f"{end}-{seed}"] for seed in SEEDS) for end in ("ce", "full"))
    timed = seconds_a_step({name: runs[name] for name in TIMED})
    rows = [
        {
            "run": name,
            "loss": loss[name],
            "part of the gap": (floor - loss[name]) / (floor - ceiling),
            **{key: scores[name][key] for key in ("ece", "acceptance", "agreement")},
            **kept(run),
            **(gradient(run, runs["ce-0"]) if isinstance(run.experiment.teacher, Cached) else {}),
            **({"step time / ce": timed[name] / timed["ce-0"]} if name in timed else {}),
        }
        for name, run in runs.items()
    ]
    rows.sort(key=lambda row: row["loss"])
    return write(rows, directory)


TIMED = ("ce-0", "full-0", "draws50-0", "top50-bucket", "systematic12")


def kept(run: Run) -> dict[str, float]:
    """Entries and bytes a token of what a run's cache keeps of its teacher, as a run that has it for itself would."""
    teacher = run.experiment.teacher
    if not isinstance(teacher, Cached):
        return {}
    source = frozen.find(run.experiment.sources, run.directory)["cache"]
    if teacher.first is None:
        return caching.averages(source)
    with tempfile.TemporaryDirectory() as scratch:
        return caching.averages(
            caching.cut(source, Path(scratch) / "cut", first=teacher.first, windows=4096, quiet=True)
        )


def gradient(run: Run, at: Run, batches: int = 64) -> dict[str, float]:
    """How the gradient of a run's objective lies to that of the whole distribution, for the student `at`."""
    experiment: Any = run.experiment
    dataset = data.prepare(experiment.data, quiet=True)
    source = frozen.find(experiment.sources, run.directory)["cache"]
    cache = frozen.open_cache(source, experiment.teacher, experiment, dataset)
    teacher = load_run(run.directory.parent / "teacher")
    ours = jax.jit(make_gradient(at.model, experiment.objective, {}))
    whole = jax.jit(make_gradient(at.model, {"kl": Term(ForwardKL())}, {"teacher": teacher.model}))
    found = compare(
        lambda batch, key: ours(at.params, {}, batch, key),
        lambda batch, key: whole(at.params, {"teacher": teacher.params}, dataclasses.replace(batch, target=None), key),
        (cache.attach(dataset.batch(experiment.batch, 99, step)) for step in range(batches)),
    )
    return {"angle": found.angle, "norm ratio": found.ratio}


def seconds_a_step(runs: dict[str, Run], rounds: int = 7, steps: int = 60) -> dict[str, float]:
    """Median wall time of a training step with its data and targets, the runs taking turns."""
    loops = {name: loop(run, steps) for name, run in runs.items()}
    times = [{name: next(turns) for name, turns in loops.items()} for _ in range(rounds + 1)][1:]  # the first compiles
    return {name: statistics.median(turn[name] for turn in times) for name in loops}


def loop(run: Run, steps: int) -> Iterator[float]:
    """Trains, and gives the seconds a step of every `steps` of them."""
    experiment, teachers = run.experiment, {}
    dataset, attach = data.prepare(experiment.data, quiet=True), None
    if isinstance(experiment.teacher, Cached):
        source = frozen.find(experiment.sources, run.directory)["cache"]
        attach = frozen.open_cache(source, experiment.teacher, experiment, dataset).attach
    elif experiment.teacher is not None:
        teachers = {"teacher": load_run(run.directory.parent / "teacher")}
    program = build(experiment, {name: teacher.model for name, teacher in teachers.items()})
    params = {name: teacher.params for name, teacher in teachers.items()}
    state, coef = program.init(jax.random.key(0)), dict.fromkeys(experiment.objective, np.float32(1))
    began = time.perf_counter()
    for step, batch in enumerate(dataset.batches(experiment.batch, 0, then=attach), 1):
        state, _ = program.step(state, params, program.place(batch), experiment.optim.rates(step, 10**6), coef)
        if step % steps == 0:
            jax.block_until_ready(state)
            yield (time.perf_counter() - began) / steps
            began = time.perf_counter()


def write(rows: list[dict[str, Any]], directory: Path) -> list[Path]:
    """report.csv, sparse_kd.svg and report.html."""
    drawing = svg(figure(rows))
    title = "How much of a teacher's distribution does a student need?"
    contents = {"report.csv": page.csv_of(rows), "sparse_kd.svg": drawing}
    contents["report.html"] = page.of_rows(title, rows, {CAPTION: drawing})
    for name, content in contents.items():
        rundir.write_atomically(directory / name, content)
    return [directory / name for name in contents]


CAPTION = (
    "Left: validation loss over what is kept of the teacher for a token. Bands are plain training (upper) and the "
    "whole distribution (lower), as wide as three seeds. Right: calibration error of the same runs, where the band of "
    "the whole distribution is the upper one."
)
GROUPS = {
    "top K, renormalised": "-renormalised", "top K, bucket": "-bucket", "top K, uniform rest": "-uniform",
    "top K, rest to the label": "-label", "draws": "draws", "systematic draws": "systematic", "pps": "pps",
}  # fmt: skip


@in_style
def figure(rows: list[dict[str, Any]]) -> Any:
    """Loss and calibration over the entries that are kept, a line for each way of keeping them."""
    drawing, panels = canvas(9, 3.6, 1, 2)
    for panel, key, label in zip(panels, ("loss", "ece"), ("validation loss, nats a token", "ECE"), strict=True):
        for end in ("ce", "full"):
            values = [row[key] for row in rows if row["run"].startswith(f"{end}-")]
            panel.axhspan(min(values), max(values), color=FAINT, alpha=0.3, linewidth=0)
        looks = [*styles(len(GROUPS) - 1), (INK, "s")]
        for (name, part), (colour, marker) in zip(GROUPS.items(), looks, strict=True):
            own = sorted((row["entries"], row[key]) for row in rows if part in row["run"])
            panel.plot(*zip(*own, strict=True), color=colour, marker=marker, label=name)
        panel.set_xscale("log")
        plain_log_ticks(panel.xaxis)
        panel.set_xlabel("entries a token")
        panel.set_ylabel(label)
    panels[0].legend()
    return drawing
