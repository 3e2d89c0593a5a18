"""Does a student that comes closer to its teacher come closer to the truth?

    python experiments/teacher_hacking.py            # trains the teacher, which then writes the texts of all students
    jaxdistill sweep experiments/teacher_hacking.py  # 9 runs; five minutes on two cores, the first command included
    jaxdistill report experiments/teacher_hacking.py

The question of "On Teacher Hacking in Language Model Distillation" (arXiv 2502.02671) where the truth is exact: the
oracle is a Markov chain, the teacher is trained on its text, and students of half the teacher's width learn the
teacher's distribution on texts that the teacher wrote, a fixed number of them again and again (offline), or new ones at
every step (online). The proxy is KL(teacher || student), the golden metric KL(oracle || student), both per token on
held-out text of the oracle. Hacking: the proxy falls on while the golden metric rises. Published: offline students
hack, the more the fewer texts they have; online students do not; and a proxy that leaves its power law gives it away.
Texts that students write themselves are not among the arms.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.optimize import curve_fit

from jaxdistill import data, metrics, rundir
from jaxdistill.analysis import load_run
from jaxdistill.data.markov import LETTERS
from jaxdistill.errors import InputError
from jaxdistill.evals.figures import svg
from jaxdistill.experiment import Experiment
from jaxdistill.generate import Sampling, generate, make_generate
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.models import ladder
from jaxdistill.optim import AdamW
from jaxdistill.run import run
from jaxdistill.scaling import page
from jaxdistill.scaling.style import FAINT, canvas, in_style, plain_log_ticks, styles
from jaxdistill.teacher import Online

DIRECTORY = Path("runs/teacher_hacking")
LENGTH, BATCH, STEPS = 64, 16, 3200
WARMUP = 100
OFFLINE = (256, 1024, 4096)  # texts of a student that sees them again and again
ONLINE = STEPS * BATCH  # texts of a student that sees each of them once
SEEDS = (0, 1)
SHARE = 77  # the teacher learns from one of so many texts of the oracle, 665 in all, 24 times over
ORACLE = data.Markov(62, order=1, concentration=0.3, seed=0, num_documents=ONLINE, length=LENGTH - 1)


def teacher() -> Experiment:
    """Width 64, trained on so few texts of the oracle that it learns their accidents too."""
    return Experiment(
        model=ladder.laptop(64, 257),
        data=data.Tokens(ORACLE, data.Bytes(), length=LENGTH, part=(0, SHARE), validation_windows=512),
        objective={"ce": Term(CrossEntropy())},
        steps=1000,
        batch=BATCH,
        optim=AdamW(peak=4e-2, warmup=WARMUP),
        checkpoint_every=500,
        protocol="teacher",
    )


def student(texts: int, seed: int = 0) -> Experiment:
    """Width 32, trained on the teacher's distribution over so many of its texts; validated on the oracle's."""
    source = data.Files(str(DIRECTORY / "texts" / f"{texts}.jsonl"), validation_path=str(DIRECTORY / "oracle.jsonl"))
    return dataclasses.replace(
        teacher(),
        model=ladder.laptop(32, 257),
        data=dataclasses.replace(teacher().data, source=source, part=(0, 1)),
        objective={"kl": Term(ForwardKL())},
        teacher=Online(teacher()),
        steps=STEPS,
        evaluate_every=40,
        seed=seed,
        protocol="online" if texts == ONLINE else "offline",
    )


def sweep() -> dict[str, Experiment]:
    """The teacher, students of a fixed number of texts, and students of new ones."""
    runs = {"teacher": teacher()}
    for seed in SEEDS:
        runs |= {f"offline-{texts}-{seed}": student(texts, seed) for texts in OFFLINE}
        runs[f"online-{seed}"] = student(ONLINE, seed)
    return runs


def config() -> Experiment:
    """A student of few texts."""
    return student(OFFLINE[0])


def write_texts(directory: Path = DIRECTORY) -> None:
    """Trains the teacher; writes texts of its own, and validation text of the oracle, as JSONL.

    A text of the teacher begins with as many letters of the oracle as its contexts have. The files of fewer texts are
    the beginnings of the largest one.
    """
    run(teacher(), directory / "teacher")
    source = load_run(directory / "teacher")
    tokenizer = source.tokenizer
    starts = [tokenizer.encode(text[: ORACLE.order]) for text in itertools.islice(ORACLE.documents("train"), ONLINE)]
    made = jax.jit(make_generate(source.model, Sampling(), (tokenizer.eos_id,), LENGTH))
    found = generate(functools.partial(made, source.params), starts, max_tokens=LENGTH, size=512)
    texts = [tokenizer.decode([*start, *text.ids]) for start, text in zip(starts, found, strict=True)]
    (directory / "texts").mkdir(exist_ok=True)
    for number in (*OFFLINE, ONLINE):
        rundir.write_atomically(directory / "texts" / f"{number}.jsonl", lines(texts[:number]))
    rundir.write_atomically(directory / "oracle.jsonl", lines(ORACLE.documents("validation")))


def lines(texts: Iterable[str]) -> str:
    """The same as JSONL."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


# ---------------------------------------------------------------------------------------------------------------------
# The report


def report(directory: Path) -> list[Path]:
    """A table, a figure and a page of those students of a sweep that have finished."""
    names = [name for name in sweep() if name != "teacher" and rundir.is_finished(directory / name)]
    if not any(name.endswith(f"-{SEEDS[0]}") for name in names):
        raise InputError(f"{directory} has no finished student: the head of teacher_hacking.py has the commands")
    floor = oracle_loss(teacher().data)
    curves = {name: Curve.of(directory / name, floor) for name in names}
    rows = [row_of(name, curve, rundir.read_config(directory / name)) for name, curve in curves.items()]
    points = [
        {"run": name, "step": step, "proxy": f"{proxy:.5f}", "golden": f"{golden:.5f}"}
        for name, curve in curves.items()
        for step, proxy, golden in zip(*curve, strict=True)
    ]
    drawing = svg(figure(curves, rundir.read_result(directory / "teacher")["loss"] - floor))
    contents = {"csv": page.csv_of(rows), "svg": drawing}
    contents["html"] = page.of_rows(
        "Does a student close to its teacher come close to the truth?", rows, {CAPTION: drawing}
    )
    for ending, content in contents.items():
        rundir.write_atomically(directory / f"teacher_hacking.{ending}", content)
    rundir.write_atomically(directory / "teacher_hacking_curves.csv", page.csv_of(points))
    return [*(directory / f"teacher_hacking.{ending}" for ending in contents), directory / "teacher_hacking_curves.csv"]


def oracle_loss(tokens: data.Tokens) -> float:
    """The loss of a chain of first order itself on the validation windows of its text, nats per token.

    A model's loss on the same text less this is KL(oracle || model), but for the sampling error of the difference. The
    end of a text, after a known number of letters, costs the oracle nothing.
    """
    dataset, oracle, total, count = data.prepare(tokens, quiet=True), tokens.source, 0.0, 0.0
    assert isinstance(oracle, data.Markov) and oracle.order == 1
    letter_V, next_AA = np.zeros(257, int), oracle.next_letter()[1]
    letter_V[[ord(own) for own in LETTERS[: oracle.alphabet]]] = np.arange(oracle.alphabet)
    for batch in dataset.validation(BATCH):
        tokens_BL, label_BL, counts_BL = (np.asarray(x) for x in (batch.tokens_BL, batch.label_BL, batch.weight_BL))
        p_BL = np.where(label_BL == dataset.tokenizer.eos_id, 1.0, next_AA[letter_V[tokens_BL], letter_V[label_BL]])
        total -= np.log(p_BL[counts_BL > 0]).sum()
        count += counts_BL.sum()
    return float(total / count)


class Curve(NamedTuple):
    """What the evaluations of a student found, E of them: steps, and nats per token."""

    step_E: np.ndarray
    proxy_E: np.ndarray
    golden_E: np.ndarray

    @classmethod
    def of(cls, directory: Path, floor: float) -> "Curve":
        rows = [row for row in metrics.read(directory / rundir.METRICS) if "validation/forward_kl" in row]
        columns = ("step", "validation/forward_kl", "validation/cross_entropy")
        step_E, proxy_E, loss_E = (np.array([row[name] for row in rows]) for name in columns)
        return cls(step_E, proxy_E, loss_E - floor)


def hacks(curve: Curve, margin: float = 0.005) -> bool:
    """Whether the student ends further from the oracle than it was at its closest, and no further from its teacher.

    `margin` in nats is what two evaluations of one distance may differ by: twice the standard error of a difference of
    losses on the 32 k tokens of validation text. Between students of two seeds it spreads by 0.43 over tokens.
    """
    closest = curve.golden_E.argmin()
    return bool(curve.golden_E[-1] > curve.golden_E[closest] + margin and curve.proxy_E[-1] <= curve.proxy_E[closest])


def leaves_power_law(step_E: np.ndarray, distance_E: np.ndarray, points: int = 24, early: float = 0.4) -> bool:
    """Whether a distance that fell as a power of the steps ends above that: the sign that needs no oracle.

    floor + a steps^-b, in logarithms, through the first part of evenly (log-)spaced points, from the end of the warm-up
    on; then at least three points in a row more than three standard deviations above it, those of the fit among them.
    The paper has no floor; a student that cannot hold all of its teacher has one.
    """
    wanted = np.geomspace(WARMUP, step_E[-1], points)
    chosen = np.unique([np.abs(step_E - step).argmin() for step in wanted])
    step_E, log_E = step_E[chosen], np.log(distance_E[chosen])
    first = round(early * len(chosen))

    def law(step, log_a, b, log_floor):
        return np.logaddexp(log_a - b * np.log(step), log_floor)

    start = (log_E[0] + np.log(step_E[0]), 1.0, log_E[:first].min() - 0.1)
    fitted, covariance_PP = curve_fit(law, step_E[:first], log_E[:first], start, maxfev=100_000)
    apart_E = log_E - law(step_E, *fitted)
    slope_PE = np.array([(law(step_E, *(fitted + d)) - law(step_E, *(fitted - d))) / 2e-4 for d in 1e-4 * np.eye(3)])
    variance = np.sum(apart_E[:first] ** 2) / (first - len(start))
    variance_E = variance + np.einsum("pe,pq,qe->e", slope_PE, covariance_PP, slope_PE)  # of a point, and of the law
    above_E = (apart_E > 3 * np.sqrt(variance_E))[first:]
    return bool((above_E[:-2] & above_E[1:-1] & above_E[2:]).any())


def row_of(name: str, curve: Curve, experiment: Experiment) -> dict[str, Any]:
    """What a student came to."""
    texts, closest = int(name.split("-")[1]) if experiment.protocol == "offline" else ONLINE, curve.golden_E.argmin()
    return {
        "run": name,
        "texts": texts,
        "epochs": STEPS * BATCH / texts,
        "seed": experiment.seed,
        "proxy": float(curve.proxy_E[-1]),
        "golden": float(curve.golden_E[-1]),
        "least golden": float(curve.golden_E[closest]),
        "at step": int(curve.step_E[closest]),
        "proxy there": float(curve.proxy_E[closest]),
        "least proxy": float(curve.proxy_E.min()),
        "hacks": hacks(curve),
        "leaves its power law": leaves_power_law(curve.step_E, curve.proxy_E),
    }


CAPTION = (
    "Left: how far students are from the oracle as they come closer to their teacher; time runs from right to left. "
    "Middle and right: both distances over the steps. Dashed: the teacher's own distance from the oracle."
)


@in_style
def figure(curves: dict[str, Curve], of_teacher: float) -> Any:
    """Golden over proxy, and both over steps; the first seed of every arm."""
    drawing, panels = canvas(10, 3.4, 1, 3)
    arms = {name.rpartition("-")[0]: curve for name, curve in curves.items() if name.endswith(f"-{SEEDS[0]}")}
    for (name, curve), (colour, _) in zip(arms.items(), styles(len(arms)), strict=True):
        label = "online" if name == "online" else f"{name.split('-')[1]} texts"
        look = {"color": colour, "label": label}
        panels[0].plot(curve.proxy_E, curve.golden_E, marker=".", markersize=3, linewidth=1, **look)
        panels[1].plot(curve.step_E, curve.proxy_E, **look)
        panels[2].plot(curve.step_E, curve.golden_E, **look)
    names = ("KL(teacher || student)", "KL(oracle || student)")
    for panel, (x, y) in zip(panels, (names, ("step", names[0]), ("step", names[1])), strict=True):
        panel.set(xscale="log", yscale="log", xlabel=f"{x}, nats" if "KL" in x else x, ylabel=f"{y}, nats")
        plain_log_ticks(panel.xaxis)
        plain_log_ticks(panel.yaxis)
    for panel in (panels[0], panels[2]):
        panel.axhline(of_teacher, color=FAINT, linestyle="--", zorder=1)
    panels[1].legend()
    return drawing


if __name__ == "__main__":
    write_texts()
