"""How near do a few stored entries come to a teacher: error of the target and of the gradient, at equal entries?

    python benchmarks/samplers.py --out runs/samplers            # trains experiments/sparse_kd.py's teacher first
    python benchmarks/samplers.py --out runs/samplers RUN ...    # teachers of finished runs

Draws with replacement keep fewer entries than rounds, and more where the teacher is unsure; their rounds are chosen so
that the mean over all tokens is the number of entries that the others keep. On validation tokens, of each sampler: the
squared error of the target, summed over the vocabulary; the angle between its gradient in the parameters of a new
student and that of the whole teacher, for one draw of the targets and for the mean over redraws; and the ratio of the
two norms, for one draw. The last row of each size is the least error that any unbiased sampler can have with as many
entries on average: inclusion with probability min(1, p / t), one t for all tokens where `PPS` has one for each.

Expected before measuring: systematic draws at half of multinomial's error or less, and a fixed number of different ids
between them, since entries that a sure token does not need are not given to an unsure one. Angles of draws fall with
the root of the number of redraws, those of top-K do not move.
"""

import argparse
import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import report
from jax.flatten_util import ravel_pytree
from scipy.optimize import brentq

from jaxdistill import data, frozen, rundir
from jaxdistill.cache.samplers import PPS, Draws, Sampler, Top
from jaxdistill.experiment import load_module
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.losses.loss import Loss
from jaxdistill.losses.sampled import SampledCrossEntropy
from jaxdistill.losses.targets import NO_ID, Dense, TopK
from jaxdistill.losses.top_k import Tail, TopKDivergence
from jaxdistill.models import ladder
from jaxdistill.models.transformer import Transformer
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.run import run

SIZES = (3, 6, 12, 24)
REDRAWS = 16
TOKENS, LOGITS = 1024, 2**25  # tokens, or as many as have so many logits
SPARSE_KD = pathlib.Path(__file__).parents[1] / "experiments" / "sparse_kd.py"


class Subject(NamedTuple):
    """A teacher on some validation tokens: its target, its probabilities in float64, and the batch."""

    target: Dense
    p_TV: np.ndarray
    batch: data.Batch


def load(directory: pathlib.Path) -> Subject:
    """The teacher of a finished run on its own validation text."""
    experiment = rundir.read_config(directory)
    dataset = data.prepare(experiment.data)
    model, params = frozen.load(directory, "float32", dataset.tokenizer, Mesh().build())
    tokens = min(TOKENS, LOGITS // dataset.vocab_size)
    (batch, *_) = dataset.validation(tokens // experiment.data.length)
    h_BLD, _ = jax.jit(model.hidden)(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
    target = Dense(jnp.asarray(batch.label_BL), jax.jit(model.head)(params, h_BLD))
    z_BLV = jax.jit(lambda head: head.logits()[..., : head.vocab_size])(target.head)
    p_TV = np.exp(np.asarray(jax.nn.log_softmax(z_BLV), np.float64)).reshape(-1, dataset.vocab_size)
    return Subject(target, p_TV, batch)


def rounds_for(entries: int, sampler: str, p_TV: np.ndarray) -> int:
    """The rounds at which a token keeps nearest to so many different ids, on average."""

    def kept(rounds: int) -> float:
        if sampler == "systematic":
            return np.minimum(1, rounds * p_TV).sum(-1).mean()
        return -np.expm1(rounds * np.log1p(-np.minimum(p_TV, 1 - 1e-12))).sum(-1).mean()

    low, high = 1, 2
    while kept(high) < entries:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kept(middle) < entries else (low, middle)
    return min((low, high), key=lambda rounds: abs(kept(rounds) - entries))


def least_error(entries: int, p_TV: np.ndarray) -> float:
    """Of any unbiased sampler that keeps so many entries on average: sum of p (t - p) over the ids below t."""
    t = brentq(lambda t: np.minimum(1, p_TV / t).sum(-1).mean() - entries, 1e-9, 1.0)
    return (p_TV * np.maximum(t - p_TV, 0)).sum(-1).mean()


@functools.partial(jax.jit, static_argnums=0)
def cut(keep: Sampler, target: Dense, key: jax.Array) -> Any:
    index_BL = jnp.arange(target.label_BL.size).reshape(target.label_BL.shape)
    return keep(target, key, index_BL, Sharding())


def entries_and_error(target: Any, p_TV: np.ndarray, tail: Tail | None) -> tuple[float, float]:
    """(mean number of entries, mean over tokens of the squared error of what the loss takes for the distribution)."""
    ids_TS = np.asarray(target.id_BLS).reshape(len(p_TV), -1)
    held_TS = ids_TS != NO_ID
    weight = np.exp(target.logp_BLS) if isinstance(target, TopK) else target.weight_BLS
    weight_TS = np.asarray(weight, np.float64).reshape(ids_TS.shape) * held_TS
    if tail == "renormalised":
        weight_TS /= weight_TS.sum(-1, keepdims=True)
    p_TS = np.take_along_axis(p_TV, np.where(held_TS, ids_TS, 0), axis=-1)
    error_T = (p_TV**2).sum(-1) + (weight_TS * (weight_TS - 2 * p_TS)).sum(-1)
    return held_TS.sum(-1).mean(), error_T.mean()


class Gradients:
    """Gradients in all parameters of a new student, as vectors."""

    def __init__(self, subject: Subject):
        self._model = Transformer(ladder.laptop(32, subject.p_TV.shape[1]))
        self._params = jax.jit(self._model.init)(jax.random.key(0))
        self._batch = subject.batch
        self._of = jax.jit(self._gradient, static_argnums=0)
        self.whole = self(ForwardKL(), subject.target)

    def __call__(self, loss: Loss, target: Any) -> np.ndarray:
        return np.asarray(self._of(loss, self._params, target), np.float64)

    def _gradient(self, loss: Loss, params: Any, target: Any) -> jax.Array:
        def mean(params: Any) -> jax.Array:
            batch = self._batch
            h_BLD, _ = self._model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
            return jnp.mean(loss(self._model.head(params, h_BLD).logits(), target))

        return ravel_pytree(jax.grad(mean)(params))[0]


def angle(x: np.ndarray, y: np.ndarray) -> float:
    return math.degrees(math.acos(min(1.0, x @ y / np.linalg.norm(x) / np.linalg.norm(y))))


def row(name: str, keep: Sampler, tail: Tail | None, subject: Subject, gradients: Gradients) -> list[Any]:
    loss = SampledCrossEntropy() if tail is None else TopKDivergence(tail=tail)
    redraws = REDRAWS if tail is None else 1
    measured, vectors = [], []
    for seed in range(redraws):
        target = cut(keep, subject.target, jax.random.key(seed))
        measured.append(entries_and_error(target, subject.p_TV, tail))
        vectors.append(gradients(loss, target))
    entries, error = np.mean(measured, axis=0)
    one = np.mean([angle(vector, gradients.whole) for vector in vectors])
    ratio = np.mean([np.linalg.norm(vector) for vector in vectors]) / np.linalg.norm(gradients.whole)
    return [name, entries, error, one, angle(np.mean(vectors, axis=0), gradients.whole), ratio]


def table(directory: pathlib.Path, subject: Subject) -> report.Table:
    gradients, rows = Gradients(subject), []
    for size in report.progress(SIZES, f"sizes of {directory.name}"):
        cases: list[tuple[str, Sampler, Tail | None]] = []
        for sampler in ("multinomial", "systematic"):
            rounds = rounds_for(size, sampler, subject.p_TV)
            cases.append((f"{sampler}, {rounds} rounds", Draws(rounds, sampler), None))
        cases.append((f"PPS, {size}", PPS(size), None))
        cases += [(f"top {size}, {tail}", Top(size), tail) for tail in ("none", "renormalised", "bucket")]
        found = [row(*case, subject, gradients) for case in cases]
        rows += [
            (name, f"{n:.2f}", f"{error:.2e}", f"{error / found[0][2]:.2f}", f"{a:.1f}", f"{mean:.1f}", f"{ratio:.2f}")
            for name, n, error, a, mean, ratio in found
        ]
        least = least_error(size, subject.p_TV)
        rows.append(("least, unbiased", f"{size:.2f}", f"{least:.2e}", f"{least / found[0][2]:.2f}", "", "", ""))
    entropy = -(subject.p_TV * np.log(subject.p_TV + 1e-300)).sum(-1).mean()
    columns = (
        "kept", "entries a token", "squared error", "of multinomial's", "angle, degrees",
        f"angle of the mean of {REDRAWS}", "norm ratio",
    )  # fmt: skip
    title = f"{subject.p_TV.shape[1]} ids, mean entropy {entropy:.2f} nats, {len(subject.p_TV)} tokens"
    return report.Table(title, columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where the teacher is trained")
    parser.add_argument("runs", type=pathlib.Path, nargs="*", help="finished runs to take in place of it")
    arguments = parser.parse_args()
    if not arguments.runs:
        arguments.runs = [arguments.out / "teacher"]
        run(load_module(SPARSE_KD).teacher(), arguments.runs[0])
    tables = [table(directory, load(directory)) for directory in arguments.runs]
    notes = f"a teacher's validation text; a student of width 32 at its start; {REDRAWS} redraws of what is random"
    report.write("samplers", notes, tables)


if __name__ == "__main__":
    main()
