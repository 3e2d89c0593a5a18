"""What does a student that begins as half of its teacher still need the teacher for?

    jaxdistill sweep experiments/teacher_free.py
    jaxdistill report experiments/teacher_free.py

Teacher-free truncation (Jha et al. 2023, arXiv 2305.14864): six of a trained model's twelve layers go on training on
plain text. Against it, at 100, 300 and 900 steps, each with a schedule and the best peak rate of its own: the same
shape from random parameters, and the same layers with half of their loss from the model they were cut from, which runs
beside them ("online") or has spoken before ("cached", 50 draws a token). And at equal depth: which six layers. 41 runs
beside the teacher's, about half an hour on two idle cores.
Expected: truncated far ahead of random while budgets are small, and less so later; what lies near the output is worst
to remove; a teacher helps per token, and costs two thirds more FLOPs.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill import data, frozen, rundir
from jaxdistill.analysis import load_run
from jaxdistill.cache.samplers import Draws
from jaxdistill.evals.figures import svg
from jaxdistill.experiment import Experiment
from jaxdistill.interpolate.curve import Scorer
from jaxdistill.interpolate.pair import Pair
from jaxdistill.losses import methods
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.objective import Term
from jaxdistill.losses.sampled import SampledCrossEntropy
from jaxdistill.models import ladder
from jaxdistill.models.surgery import patterns
from jaxdistill.optim import AdamW
from jaxdistill.program import build
from jaxdistill.scaling import page
from jaxdistill.scaling.style import FAINT, INK, canvas, in_style, plain_log_ticks, styles
from jaxdistill.start import Truncated
from jaxdistill.sweep import cost
from jaxdistill.teacher import Cached, Online

VOCABULARY, DEPTH, SIZE = 512, 12, 6
SHORT, PEAK = 300, 1e-2  # the budget at which seeds and layers are compared, and the rate
SEEDS = (1, 2, 3)  # none is the teacher's: the text comes in another order
PATTERNS = {
    "max-gap": patterns.max_gap(DEPTH, SIZE),
    "every second": patterns.every_nth(DEPTH, last=0),
    "input": patterns.drop_input(DEPTH, SIZE),
    "middle": patterns.drop_middle(DEPTH, SIZE),
    "both": patterns.drop_both(DEPTH, SIZE),
    "output": patterns.drop_output(DEPTH, SIZE),
}


def teacher() -> Experiment:
    """Twelve layers of width 64, trained on the data: to the letter the teacher of boomerang.py, whose run serves."""
    return Experiment(
        model=ladder.rung(DEPTH, 64, VOCABULARY, head_size=16, multiple=8, base_width=64),
        data=data.Tokens(
            data.Stdlib(), data.SentencePiece(VOCABULARY, characters=2_000_000), length=128, validation_windows=256
        ),
        objective={"ce": Term(CrossEntropy())},
        steps=2400,
        batch=16,
        optim=AdamW(peak=1e-2, warmup=200),
        checkpoint_every=500,
        protocol="boomerang",
    )


def truncated(steps: int, peak: float, keep: patterns.Keep = PATTERNS["max-gap"], seed: int = SEEDS[0]) -> Experiment:
    """The teacher's layers `keep`, trained on plain text."""
    start = Truncated(teacher(), keep)
    return dataclasses.replace(
        teacher(),
        model=start.config(teacher().model),
        start=start,
        steps=steps,
        optim=AdamW(peak=peak, warmup=steps // 10),
        seed=seed,
        protocol="truncated",
    )


def random(steps: int, peak: float, seed: int = SEEDS[0]) -> Experiment:
    """The same shape from random parameters."""
    return dataclasses.replace(truncated(steps, peak, seed=seed), start=None, protocol="random")


def online(steps: int, peak: float) -> Experiment:
    """The truncated student, half of whose loss is KL(teacher || student)."""
    terms = methods.word_kd(label=0.5)
    return dataclasses.replace(
        truncated(steps, peak), teacher=Online(teacher()), objective=terms, protocol="truncated, teacher online"
    )


def cached(steps: int, peak: float) -> Experiment:
    """The same in expectation, of 50 draws a token from one cache for all budgets."""
    source = Cached(teacher(), Draws(50), windows=max(PEAKS[cached]) * teacher().batch)
    terms = {"ce": Term(CrossEntropy(), 0.5), "rs": Term(SampledCrossEntropy(), 0.5)}
    return dataclasses.replace(
        truncated(steps, peak), teacher=source, objective=terms, protocol="truncated, teacher cached"
    )


PEAKS = {  # of every arm at every budget; neighbours differ by a factor of two, and the best is reported
    random: {100: (1e-2, 2e-2, 4e-2, 8e-2), 300: (1e-2, 2e-2, 4e-2, 8e-2), 900: (1e-2, 2e-2, 4e-2)},
    truncated: {100: (5e-3, 1e-2, 2e-2), 300: (2.5e-3, 5e-3, 1e-2, 2e-2), 900: (5e-3, 1e-2, 2e-2)},
    online: {100: (5e-3, 1e-2, 2e-2), 300: (5e-3, 1e-2, 2e-2), 900: (1e-2,)},
    cached: {100: (1e-2,), 300: (1e-2,), 900: (1e-2,)},
}


def sweep() -> dict[str, Experiment]:
    """Every arm at every budget and peak; further seeds of two arms; other layers than those of `max-gap`."""
    runs = {"teacher": teacher()}
    for arm, grids in PEAKS.items():
        for steps, peaks in grids.items():
            runs |= {f"{arm.__name__}-{steps}-{peak:g}": arm(steps, peak) for peak in peaks}
    for seed in SEEDS[1:]:
        runs[f"random-seed{seed}"] = random(SHORT, 4 * PEAK, seed)
        runs[f"truncated-seed{seed}"] = truncated(SHORT, PEAK, seed=seed)
    others = {name: keep for name, keep in PATTERNS.items() if name != "max-gap"}
    return runs | {name.replace(" ", "-"): truncated(SHORT, PEAK, keep) for name, keep in others.items()}


def config() -> Experiment:
    """Half of the teacher's layers, and no teacher."""
    return truncated(SHORT, PEAK)


# ---------------------------------------------------------------------------------------------------------------------
# The report


def report(directory: Path) -> list[Path]:
    """A table, two figures and a page of the finished sweep in a directory; about three minutes on two cores."""
    runs = {name: rundir.read_config(directory / name) for name in sweep()}
    untrained, pace = losses_at_start(directory), step_times(directory, runs)
    rows = [
        {
            "run": name,
            "protocol": own.protocol,
            "pattern": pattern_of(own),
            "steps": own.steps,
            "peak": own.optim.peak,
            "seed": own.seed,
            "loss at start": untrained.get(pattern_of(own)),
            "loss": rundir.read_result(directory / name)["loss"],
            "tokens": own.tokens,
            "FLOPs": cost(own),
            "time": pace[type(own.teacher)] * own.steps if name != "teacher" else None,
        }
        for name, own in runs.items()
    ]
    return write(sorted(rows, key=lambda row: row["loss"]), directory)


def pattern_of(run: Experiment) -> str:
    """The name of the layers that a run began with, empty where they were random."""
    return next(
        (name for name, keep in PATTERNS.items() if isinstance(run.start, Truncated) and run.start.keep == keep), ""
    )


def losses_at_start(directory: Path) -> dict[str, float]:
    """The loss of every pattern's layers before they are trained."""
    scorer = Scorer(Pair.of(directory / "output"))
    return {name: scorer.pruned(keep)["loss"] for name, keep in PATTERNS.items()}


def step_times(directory: Path, runs: dict[str, Experiment], rounds: int = 12, steps: int = 10) -> dict[type, float]:
    """Wall time of a step with its data and target, by the kind of teacher, in steps without one.

    The kinds take turns, and the median is of ratios within a turn: other work on the machine slows all of them.
    """
    loops = {type(own.teacher): loop(directory / name, steps) for name, own in runs.items() if name != "teacher"}
    turns = [{kind: next(own) for kind, own in loops.items()} for _ in range(rounds + 1)][1:]  # the first compiles
    return {kind: statistics.median(turn[kind] / turn[type(None)] for turn in turns) for kind in loops}


def loop(run: Path, steps: int) -> Iterator[float]:
    """Trains a student of this shape and target, and gives the seconds a step of every `steps` of them."""
    experiment, attach = rundir.read_config(run), None
    dataset, found = data.prepare(experiment.data, quiet=True), frozen.find(experiment.sources, run)
    if "cache" in found:
        attach = frozen.open_cache(found["cache"], experiment.teacher, experiment, dataset).attach
    teachers = {"teacher": load_run(found["teacher"])} if "teacher" in found else {}
    program = build(experiment, {name: teacher.model for name, teacher in teachers.items()})
    params = {name: teacher.params for name, teacher in teachers.items()}
    state, coef = program.init(jax.random.key(0)), dict.fromkeys(experiment.objective, np.float32(1))
    began = time.perf_counter()
    for step, batch in enumerate(dataset.batches(experiment.batch, experiment.seed, then=attach), 1):
        state, _ = program.step(state, params, program.place(batch), experiment.optim.rates(step, 10**6), coef)
        if step % steps == 0:
            jax.block_until_ready(state)
            yield (time.perf_counter() - began) / steps
            began = time.perf_counter()


def write(rows: list[dict[str, Any]], directory: Path) -> list[Path]:
    """teacher_free.csv, the page teacher_free.html, and two figures, teacher_free.svg and teacher_free.layers.svg."""
    drawings = {COSTS: svg(costs(rows)), LAYERS: svg(layers(rows))}
    contents = {"csv": page.csv_of(rows), "svg": drawings[COSTS], "layers.svg": drawings[LAYERS]}
    contents["html"] = page.of_rows("What does half a teacher need a teacher for?", rows, drawings)
    for ending, content in contents.items():
        rundir.write_atomically(directory / f"teacher_free.{ending}", content)
    return [directory / f"teacher_free.{ending}" for ending in contents]


ARMS = ("random", "truncated", "truncated, teacher online", "truncated, teacher cached")
AXES = {"tokens": "tokens", "FLOPs": "FLOPs, the teacher's included", "time": "wall time, in steps without a teacher"}
COSTS = (
    "Validation loss over what a run took. Every point is a run with a schedule of its own and the best of a few peak "
    "rates; small points are further seeds. Below, the same without the random student. Per token, the line of the "
    "cached teacher hides that of the same teacher online. Dashed: the model of twelve layers that all but one begin "
    "with. Its own training is not counted, nor is the making of the cache."
)
LAYERS = (
    "Which six of twelve layers to keep, named by where the others are taken from: the loss before the first step and "
    "after the last. Several points in a row are seeds."
)


def curve(rows: list[dict[str, Any]], arm: str) -> list[dict[str, Any]]:
    """The row of lowest loss at each budget, of those of an arm that differ in their peak alone."""
    own = [
        row for row in rows if (row["protocol"], row["seed"]) == (arm, SEEDS[0]) and row["pattern"] in ("", "max-gap")
    ]
    lowest = {row["steps"]: row for row in sorted(own, key=lambda row: -row["loss"])}  # the last of each stays
    return [lowest[steps] for steps in sorted(lowest)]


@in_style
def costs(rows: list[dict[str, Any]]) -> Any:
    """Loss over tokens, FLOPs and time, a line an arm; the lower row without the random student."""
    drawing, panels = canvas(9, 5.6, 2, 3, sharex="col", sharey="row")
    source = next(row["loss"] for row in rows if row["run"] == "teacher")
    for (key, label), column in zip(AXES.items(), panels.T, strict=True):
        for arm, (colour, marker) in zip(ARMS, styles(len(ARMS)), strict=True):
            own, seeds = curve(rows, arm), [row for row in rows if row["protocol"] == arm and row["seed"] != SEEDS[0]]
            for panel in column if arm != "random" else column[:1]:
                panel.plot(*points(own, key), color=colour, marker=marker, label=arm)
                panel.plot(*points(seeds, key), color=colour, marker=marker, linestyle="none", markersize=2.5)
        for panel in column:
            panel.axhline(source, color=FAINT, linestyle="--", zorder=1)
        column[0].set_xscale("log")
        plain_log_ticks(column[1].xaxis)
        column[1].set_xlabel(label)
    drawing.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=len(ARMS))
    drawing.supylabel("validation loss, nats a token")
    return drawing


def points(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Where rows lie in a panel."""
    return [row[key] for row in rows], [row["loss"] for row in rows]


@in_style
def layers(rows: list[dict[str, Any]]) -> Any:
    """A row a pattern: its layers, their loss untrained, and trained. Dots: a bar that does not begin at 0 misleads."""
    drawing, panels = canvas(9, 2.6, 1, 3, sharey=True)
    alike = [row for row in rows if row["protocol"] == "truncated" and (row["steps"], row["peak"]) == (SHORT, PEAK)]
    names = [row["pattern"] for row in sorted(alike, key=lambda row: row["loss"]) if row["seed"] == SEEDS[0]]
    for place, name in enumerate(names):
        panels[0].plot(range(DEPTH), [place] * DEPTH, color=FAINT, marker="s", linestyle="none", fillstyle="none")
        panels[0].plot(PATTERNS[name], [place] * SIZE, color=INK, marker="s", linestyle="none")
    for panel, key in zip(panels[1:], ("loss at start", "loss"), strict=True):
        panel.plot([row[key] for row in alike], [names.index(row["pattern"]) for row in alike], "o", color=INK)
    titles = "layers that are kept", "loss before training", f"loss after {SHORT} steps"
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title)
    panels[0].set_xticks(range(DEPTH))
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return drawing
