"""What matters in distillation: the mixture, the temperature, the rate, how much of the teacher, the direction?

    jaxdistill sweep experiments/sensitivity.py                         # every study: 27 runs
    jaxdistill sweep experiments/sensitivity.py --preset temperature    # one: lambda, temperature, rate, truncation,
    jaxdistill report experiments/sensitivity.py runs/sensitivity       #      direction or calibration

The sensitivity studies of "Distillation Scaling Laws" (arXiv 2502.08606, appendix G; table 7 and appendix E.8), around
one student of width 32 under a teacher of width 64. Every study changes one thing and shares the run in the middle:
the whole distribution, lambda = 1, temperature 1. Published: temperature 1 is best, lambda matters little above 0.5, a
truncated teacher is worse, forward KL reaches a lower loss on the data than reverse KL, and a student of the whole
distribution is calibrated on the data where one of the teacher's first choice is far too sure of itself.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill import data, rundir
from jaxdistill.analysis import Run, load_run
from jaxdistill.errors import InputError
from jaxdistill.evals.figures import svg
from jaxdistill.evals.per_token import per_token
from jaxdistill.evals.scores import head_of
from jaxdistill.experiment import Experiment
from jaxdistill.losses import methods
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.jensen_shannon import JensenShannon
from jaxdistill.losses.objective import Term
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.truncate import Truncate
from jaxdistill.models import ladder
from jaxdistill.optim import AdamW
from jaxdistill.scaling import page
from jaxdistill.scaling.style import FAINT, canvas, in_style, plain_log_ticks, styles
from jaxdistill.teacher import Online

VOCABULARY, PEAK = 512, 4e-2
SEEDS = (0, 1, 2)  # of the run in the middle: what a difference has to exceed
BINS = 21  # of every calibration error, as in the paper


def teacher(width: int = 64) -> Experiment:
    """A model trained on the text; width 64 is the strong teacher, width 16, half the student's, the weak one."""
    return Experiment(
        model=ladder.laptop(width, VOCABULARY),
        data=data.Tokens(
            data.Stdlib(), data.SentencePiece(VOCABULARY, characters=2_000_000), length=128, validation_windows=512
        ),
        objective={"ce": Term(CrossEntropy())},
        steps=2000,
        batch=8,
        optim=AdamW(peak=PEAK, warmup=100),
        checkpoint_every=500,
        protocol="teacher",
    )


def student(
    objective: dict[str, Term], study: str, *, source: Experiment | None = None, peak: float = PEAK, seed: int = 0
) -> Experiment:
    """Width 32 under a teacher; plain training where the objective does not ask for one."""
    needs_teacher = set(objective) != {"ce"}
    return dataclasses.replace(
        teacher(),
        model=ladder.laptop(32, VOCABULARY),
        objective=objective,
        teacher=Online(source or teacher()) if needs_teacher else None,
        steps=1000,
        optim=AdamW(peak=peak, warmup=100),
        seed=seed,
        protocol=study,
    )


def kl(**loss: Any) -> dict[str, Term]:
    """All of the teacher and nothing else: the objective in the middle, but for what is given."""
    return {"kl": Term(ForwardKL(**loss))}


def truncated(rule: str, amount: float) -> dict[str, Term]:
    """A part of the teacher's distribution, renormalised."""
    return {"kl": Term(ForwardKL(), target=Truncate(rule, amount))}  # ty: ignore[invalid-argument-type]


def mixture(weight: float) -> dict[str, Term]:
    """(1 - lambda) CE + lambda KL (eq. 7); lambda = 0 is plain training."""
    return methods.word_kd(label=1 - weight) if weight else {"ce": Term(CrossEntropy())}


# ---------------------------------------------------------------------------------------------------------------------
# The studies: each gives runs by name, beside the run in the middle, "base"

LAMBDAS, TEMPERATURES = (0.0, 0.5, 0.7, 0.9), (0.5, 2.0, 4.0, 10.0)
RATES = (PEAK / 8, PEAK / 4, PEAK / 2, PEAK * 2)
TOP_K, TOP_P = (1, 4, 16, 64), (0.9,)


def mixtures() -> dict[str, Experiment]:
    """Lambda, under a strong teacher and under a weak one."""
    runs = {f"lambda-{weight:g}": student(mixture(weight), "lambda") for weight in LAMBDAS}
    for weight in (0.5, 1.0):
        objective = mixture(weight) if weight < 1 else kl()
        runs[f"weak-lambda-{weight:g}"] = student(objective, "lambda", source=teacher(16))
    return runs


def temperatures() -> dict[str, Experiment]:
    """Tau, of teacher and student alike."""
    return {f"temperature-{tau:g}": student(kl(temperature=tau), "temperature") for tau in TEMPERATURES}


def rates() -> dict[str, Experiment]:
    """Peak learning rates."""
    return {f"rate-{peak:g}": student(kl(), "rate", peak=peak) for peak in RATES}


def truncations() -> dict[str, Experiment]:
    """The teacher's first K tokens or first p of its mass, and labels beside them."""
    runs = {f"top-k-{k}": student(truncated("top_k", k), "truncation") for k in TOP_K}
    runs |= {f"top-p-{p:g}": student(truncated("top_p", p), "truncation") for p in TOP_P}
    beside = {"ce": Term(CrossEntropy(), 0.3), "kl": Term(ForwardKL(), 0.7, target=Truncate("top_k", 16))}
    return runs | {"top-k-16-lambda-0.7": student(beside, "truncation")}


def directions() -> dict[str, Experiment]:
    """The other divergences."""
    return {
        "reverse-kl": student({"kl": Term(ReverseKL())}, "direction"),
        "jensen-shannon": student({"jsd": Term(JensenShannon(0.5))}, "direction"),
    }


def calibrations() -> dict[str, Experiment]:
    """The teacher's first choice alone, which the truncations have too."""
    return {"top-k-1": truncations()["top-k-1"]}


STUDIES: dict[str, Callable[[], dict[str, Experiment]]] = {
    "lambda": mixtures, "temperature": temperatures, "rate": rates, "truncation": truncations,
    "direction": directions, "calibration": calibrations,
}  # fmt: skip


def sweep(preset: str = "all") -> dict[str, Experiment]:
    """One study, or all, with the teacher and the run in the middle."""
    if preset != "all" and preset not in STUDIES:
        raise InputError(f"there is no study {preset!r}; there are {', '.join(STUDIES)}, and all")
    runs = (
        {"teacher": teacher(), "weak-teacher": teacher(16)} if preset in ("all", "lambda") else {"teacher": teacher()}
    )
    runs |= {f"base-{seed}": student(kl(), "base", seed=seed) for seed in SEEDS}
    for study in STUDIES if preset == "all" else (preset,):
        runs |= STUDIES[study]()
    return runs


def config() -> Experiment:
    """The run in the middle."""
    return student(kl(), "base")


# ---------------------------------------------------------------------------------------------------------------------
# The report


def report(directory: Path) -> list[Path]:
    """A table, a figure and a page of those studies that have finished in a directory."""
    names = [name for name in sweep() if rundir.is_finished(directory / name)]
    if "base-0" not in names:
        raise InputError(f"{directory} has no finished run base-0: `jaxdistill sweep experiments/sensitivity.py` first")
    rows = [row_of(load_run(directory / name)) for name in names]
    drawing = svg(figure(rows))
    contents = {"csv": page.csv_of(rows), "svg": drawing}
    contents["html"] = page.of_rows("Which settings of distillation matter?", rows, {CAPTION: drawing})
    for ending, content in contents.items():
        rundir.write_atomically(directory / f"sensitivity.{ending}", content)
    return [directory / f"sensitivity.{ending}" for ending in contents]


def row_of(run: Run) -> dict[str, Any]:
    """What a run came to: its loss on the data, and how sure of itself it is beside the data and its teacher."""
    experiment = run.experiment
    source = load_run(run.directory.parent / ("weak-teacher" if run.directory.name.startswith("weak-") else "teacher"))
    dataset = data.prepare(experiment.data, quiet=True)

    @jax.jit
    def values(params, teacher_params, batch):
        own, theirs = head_of(run.model, params, batch), head_of(source.model, teacher_params, batch)
        return per_token(own, batch.label_BL, theirs), batch.weight_BL

    parts = [values(run.params, source.params, batch) for batch in dataset.validation(experiment.batch)]
    counts_T = np.concatenate([np.asarray(weight_BL).ravel() for _, weight_BL in parts]) > 0
    of = {name: np.concatenate([np.asarray(x[name]).ravel() for x, _ in parts])[counts_T] for name in parts[0][0]}
    sure_T = of["confidence"]
    return {
        "run": run.directory.name,
        "study": experiment.protocol,
        "seed": experiment.seed,
        "loss": float(of["loss"].mean(dtype=np.float64)),
        "KL(teacher, student)": float(of["forward_kl"].mean(dtype=np.float64)),
        "ECE, data": calibration_error(sure_T, of["correct"]),
        "ECE, teacher's first": calibration_error(sure_T, of["agreement"]),
        "ECE, teacher's confidence": calibration_error(sure_T, of["teacher_confidence"]),
    }


def calibration_error(sure_T: np.ndarray, right_T: np.ndarray, bins: int = BINS) -> float:
    """sum_m |B_m| / n |mean right - mean sure| over bins of equal width of how sure the model is; 0 to 1.

    With the teacher's confidence in place of what is right, the ECE_Dist of arXiv 2502.08606, appendix E.8.
    """
    own_T = np.clip(np.ceil(sure_T * bins).astype(int) - 1, 0, bins - 1)
    gap_M = np.bincount(own_T, right_T.astype(np.float64) - sure_T, minlength=bins)
    return float(np.abs(gap_M).sum() / len(sure_T))


CAPTION = (
    "Validation loss of one student as one setting changes. The band is the run in the middle, all of the teacher at "
    "temperature 1, as wide as its three seeds. Last panel: calibration errors of all runs against their loss."
)
AXES = {"lambda": "lambda", "temperature": "temperature", "rate": "peak rate", "truncation": "tokens kept (top K)"}
MIDDLE = {"lambda": 1.0, "temperature": 1.0, "rate": PEAK, "truncation": float(VOCABULARY)}


@in_style
def figure(rows: list[dict[str, Any]]) -> Any:
    """A panel a study: loss over the setting; what is no number is named on the axis."""
    drawing, panels = canvas(9, 5.6, 2, 3)
    base = [row["loss"] for row in rows if row["study"] == "base"]
    for panel, study in zip(panels.flat, [*AXES, "direction"], strict=False):
        panel.axhspan(min(base), max(base), color=FAINT, alpha=0.3, linewidth=0)
        panel.set_title(study)
        panel.set_ylabel("validation loss, nats a token")
    for (study, label), panel in zip(AXES.items(), panels.flat, strict=False):
        prefix = {"lambda": "lambda-", "temperature": "temperature-", "rate": "rate-", "truncation": "top-k-"}[study]
        own = {row["run"].removeprefix(prefix): row["loss"] for row in rows if row["run"].startswith(prefix)}
        line = {float(value): loss for value, loss in own.items() if _is_number(value)} | {MIDDLE[study]: base[0]}
        (colour, marker), other = styles(2)
        panel.plot(*zip(*sorted(line.items()), strict=True), color=colour, marker=marker)
        weak = {float(row["run"].rpartition("-")[2]): row["loss"] for row in rows if row["run"].startswith("weak-lam")}
        if study == "lambda" and weak:
            weak |= {value: loss for value, loss in line.items() if value == 0}  # which has no teacher
            panel.plot(*zip(*sorted(weak.items()), strict=True), color=other[0], marker=other[1], label="weak teacher")
            panel.legend()
        panel.set_xlabel(label)
        if study != "lambda":
            panel.set_xscale("log")
            plain_log_ticks(panel.xaxis)
    others = [row for row in rows if row["study"] == "direction" or row["run"] == "base-0"]
    names = [row["run"].replace("base-0", "forward KL").replace("-kl", " KL").replace("-", "–\n") for row in others]
    panels[1, 1].plot(names, [row["loss"] for row in others], "o")
    last = panels[1, 2]
    kinds = [name for name in rows[0] if name.startswith("ECE")]
    for kind, (colour, marker) in zip(kinds, styles(len(kinds)), strict=True):
        own = [row for row in rows if row["study"] != "teacher"]
        last.plot([row["loss"] for row in own], [row[kind] for row in own], color=colour, marker=marker,
                  linestyle="none", label=kind.removeprefix("ECE, "))  # fmt: skip
    last.set_yscale("log")
    last.set_title("calibration error against")
    last.set_xlabel("validation loss")
    last.legend()
    return drawing


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
