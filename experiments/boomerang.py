"""Does one student, put back together with its teacher, give every size between the two?

    jaxdistill sweep experiments/boomerang.py
    jaxdistill report experiments/boomerang.py

Boomerang distillation (arXiv 2510.05064) on text every Python installation has. Seven of a teacher's twelve layers are
trained until each does what its block of the teacher does; then blocks are put back, one after the other, and no
intermediate size is trained. Against it: the same layers untrained, a student from random parameters, students of
intermediate sizes trained for themselves, and the parts of the loss taken away.
Expected: a smooth curve from student to teacher, below naive pruning at every size, and nothing of the kind from random
parameters. Found besides: the cosine leaves the lengths of hidden states free, and a student of this size makes them a
third shorter than the teacher's layers are used to; `lengths()` does not.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill import data, rundir
from jaxdistill.analysis import load_run
from jaxdistill.experiment import Experiment
from jaxdistill.interpolate import curve
from jaxdistill.interpolate.pair import Pair
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.hidden import Layers
from jaxdistill.losses.objective import Term
from jaxdistill.losses.states import CosineDistance, SquareHead
from jaxdistill.models import ladder
from jaxdistill.models.surgery import layers, patterns
from jaxdistill.models.surgery.influence import cosine_sum, cosine_sums, influence, stream
from jaxdistill.models.surgery.merge import collapse
from jaxdistill.models.transformer import Params, Transformer
from jaxdistill.optim import AdamW
from jaxdistill.start import Truncated
from jaxdistill.teacher import Online

VOCABULARY, DEPTH = 512, 12
KEEP = patterns.every_nth(DEPTH, n=2, first=1, last=2)  # 0, 2, 4, 6, 8, 10, 11


def teacher() -> Experiment:
    """Twelve layers of width 64, trained on the data until they use their depth."""
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


def objective(keep: tuple[int, ...] = KEEP) -> dict[str, Term]:
    """Equation 1 with the weights of the published code: CE + 0.1 KL + 2 times the mean cosine distance of the layers.

    The mean is over the aligned layers, where the paper also counts the embeddings, which start equal.
    """
    return {
        "ce": Term(CrossEntropy()),
        "kl": Term(ForwardKL(), 0.1),
        "cosine": Term(Layers(CosineDistance(), layers.pairs(keep, DEPTH)), 2.0),
    }


def student(terms: tuple[str, ...] = ("ce", "kl", "cosine"), keep: tuple[int, ...] = KEEP) -> Experiment:
    """The teacher's layers `keep`, trained with these terms of the objective."""
    start = Truncated(teacher(), keep)
    return dataclasses.replace(
        teacher(),
        model=start.config(teacher().model),
        start=start,
        teacher=Online(teacher()),
        objective={name: term for name, term in objective(keep).items() if name in terms},
        steps=800,
        optim=AdamW(peak=5e-3, warmup=50),
    )


def lengths() -> Experiment:
    """The student whose hidden states must have the teacher's lengths too: squared distances instead of cosines."""
    match = Term(Layers(SquareHead(), layers.pairs(KEEP, DEPTH)), 150.0)
    return dataclasses.replace(student(), objective={**student(("ce", "kl")).objective, "square": match})


def config() -> Experiment:
    """The student of the paper."""
    return student()


def sweep() -> dict[str, Experiment]:
    """The student, other losses, random parameters, and two intermediate sizes trained for themselves."""
    sizes = {len(kept): kept for kept in (sized(2), sized(4))}
    return {
        "teacher": teacher(),
        "student": student(),
        "ce": student(("ce",)),
        "ce-kl": student(("ce", "kl")),
        "ce-cosine": student(("ce", "cosine")),
        "lengths": lengths(),
        "random": dataclasses.replace(student(), start=None),
        **{f"distilled-{size}": student(keep=keep) for size, keep in sizes.items()},
    }


def report(directory: Path) -> list[Path]:
    """Two tables, figures and pages of the finished sweep: against the baselines, and by the parts of the loss."""
    scorer, scores = curve.Scorer(Pair.of(directory / "student")), influences(directory)
    boomerang = curve.curve(scorer)
    against = {
        "last blocks first": boomerang,
        "the same, lengths matched": curve.curve(curve.Scorer(Pair.of(directory / "lengths"))),
        "first blocks first": curve.curve(scorer, "first"),
        "greedy by KL": curve.curve(scorer, "greedy"),
        "naive pruning": curve.naive(scorer),
        "ShortGPT": [scorer.pruned(patterns.highest(scores, row["layers"])) for row in boomerang],
        "LaCo": laco(scorer, directory),
        "random parameters": curve.curve(curve.Scorer(Pair.of(directory / "random", directory / "teacher", KEEP))),
        "trained for its size": [
            boomerang[0],
            *alone(directory),
            boomerang[-1],
        ],
    }
    parts = {"CE + KL + cosine": boomerang}
    labels = {"ce": "CE", "ce-kl": "CE + KL", "ce-cosine": "CE + cosine", "lengths": "CE + KL + squares"}
    for name, label in labels.items():
        parts[label] = curve.curve(curve.Scorer(Pair.of(directory / name)))
    states = directory / "boomerang_states.csv"
    rundir.write_atomically(states, "\n".join(alike(directory)) + "\n")
    return [*curve.write(against, directory, "boomerang"), *curve.write(parts, directory, "boomerang_losses"), states]


def alike(directory: Path) -> Iterator[str]:
    """A table of hidden states against the teacher's: cosines, and lengths as a part of the teacher's."""
    teacher, pairs = load_run(directory / "teacher"), layers.pairs(KEEP, DEPTH)
    batch: Any = data.prepare(teacher.experiment.data, quiet=True).batch(16, 0, 0)
    inputs = batch.tokens_BL, batch.segment_BL, batch.position_BL
    _, wanted = teacher.model.hidden(teacher.params, *inputs, keep=[there for _, there in pairs])
    yield "run,layer,layer of the teacher,cosine,length over the teacher's"
    for name in ("student", "lengths", "ce"):
        student = load_run(directory / name)
        _, found = student.model.hidden(student.params, *inputs, keep=[here for here, _ in pairs])
        for here, there in pairs:
            length = jnp.linalg.norm(found[here], axis=-1) / jnp.linalg.norm(wanted[there], axis=-1)
            cosine = cosine_sum(found[here], wanted[there], batch.weight_BL) / batch.weight_BL.sum()
            yield f"{name},{here},{there},{cosine:.4f},{length.mean():.4f}"


def influences(directory: Path) -> list[float]:
    """The block influence of the teacher's layers on 512 windows of its training text."""
    teacher = load_run(directory / "teacher")
    sums = jax.jit(
        lambda batch: cosine_sums(
            stream(teacher.model, teacher.params, batch.tokens_BL, batch.segment_BL, batch.position_BL), batch.weight_BL
        )
    )
    dataset = data.prepare(teacher.experiment.data, quiet=True)
    parts = [sums(dataset.batch(16, 0, step)) for step in range(32)]
    return influence(jax.tree.map(lambda *each: sum(each), *parts)).tolist()


def laco(scorer: curve.Scorer, directory: Path) -> list[curve.Row]:
    """The teacher with pairs of layers merged, for each size at the highest threshold of a grid that gives it."""
    teacher = load_run(directory / "teacher")
    batch: Any = data.prepare(teacher.experiment.data, quiet=True).batch(16, 0, 0)
    whole = last_state(teacher.model, teacher.params, batch)

    def similarity(config, params):
        merged = last_state(dataclasses.replace(teacher.model, config=config), params, batch)
        return float(cosine_sum(whole, merged, batch.weight_BL) / batch.weight_BL.sum())

    found = {}
    for percent in scorer.track(range(99, 0, -1), "LaCo"):
        config, params, _ = collapse(teacher.model.config, teacher.params, similarity, size=2, threshold=percent / 100)
        found.setdefault(config.num_layers, (config, params))
        if config.num_layers <= len(KEEP):
            break
    return [scorer.whole(*found[size]) for size in sorted(found) if size >= len(KEEP)]


@functools.partial(jax.jit, static_argnums=0)
def last_state(model: Transformer, params: Params, batch: Any) -> jax.Array:
    """The hidden states that enter the output layer, [B, L, D]."""
    return model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)[0]


def alone(directory: Path) -> list[curve.Row]:
    """The rows of the runs of intermediate sizes, as they were trained."""
    runs = directory.glob("distilled-*")
    return sorted((curve.Scorer(Pair.of(run)).patched(()) for run in runs), key=lambda row: row["layers"])


def sized(k: int) -> tuple[int, ...]:
    """The layers of the teacher in the patched model whose last k blocks are its own."""
    return layers.origins(KEEP, DEPTH, layers.last_blocks(KEEP, DEPTH, k))
