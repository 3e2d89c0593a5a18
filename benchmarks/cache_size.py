"""What does it take to keep a teacher: bytes a token, and how far what is read back is from what was said?

    python benchmarks/cache_size.py --out runs/cache_size          # trains its teacher first, a quarter of an hour

A teacher of 100,000 ids, trained on the default text, is asked about validation text. After so short a training it is
less sure than large models are, so it is asked once more with its logits multiplied so that 50 draws keep 12.1
different ids, the operating point of RS-KD's paper (arXiv 2503.16870), which counts 3 bytes an id. Ours are the bytes
of all files of a cache, with what it keeps of every token for checks and metrics. DistillKit and Megatron-LM are
encoded here from their published descriptions, without their containers and in their favour: DistillKit's curves are
fitted in float64, where its own float32 loses digits.

    rounding, KL     sum p log(p / read) over the kept ids, both normalised: what storing alone does to them
    squared error    sum over the vocabulary of (target - p)^2: what keeping and storing do together
    bound, sets      log2 of the number of sets of so many ids, and of ways to count them up to the rounds
    bound, by use    bits of ids that are coded by how often each is kept in this very text, in no order

Expected before measuring: 50 draws below 36 bytes where they keep 12 ids. Top-K below both others at their fidelity,
by what sorting out equal bytes (zstandard) saves; two thirds of it are ids, which rank order makes dear.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import report
from foreign_encoders import distillkit, megatron
from samplers import SPARSE_KD
from scipy.special import gammaln

from jaxdistill import data, frozen, rundir
from jaxdistill.cache import codec
from jaxdistill.cache.columns import to_columns
from jaxdistill.cache.encode import statistics, uniforms
from jaxdistill.cache.foreign.rank_curve import Compression
from jaxdistill.cache.reader import columns_of, content_keys
from jaxdistill.cache.samplers import PPS, Draws, Top
from jaxdistill.cache.store import Store
from jaxdistill.experiment import Experiment, load_module
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.losses.targets import NO_ID, Dense, Sampled, TopK
from jaxdistill.losses.vocabulary import WHOLE
from jaxdistill.models import ladder
from jaxdistill.optim import AdamW
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.run import run

VOCABULARY = 100_000
WINDOWS, AT_ONCE = 128, 8
PAPER_ROUNDS, PAPER_IDS = 50, 12.1
SIZES = (12, 32, 64, 128)
RESOLUTIONS = (1 / 64, 1 / 8)
KEPT = {
    f"RS-KD, {PAPER_ROUNDS} rounds": Draws(PAPER_ROUNDS),
    f"systematic, {PAPER_ROUNDS} rounds": Draws(PAPER_ROUNDS, "systematic"),
    "PPS, 12": PPS(12),
    "top": Top(max(SIZES)),
}
PRESETS = {
    "recommended": Compression(VOCABULARY, 128, 16, "bfloat16", (0, 1, 2, 3, 4, "sqrt"), delta_encoding=False),
    "budget": Compression(VOCABULARY, 50, 1, "bfloat16", (0, 1, "sqrt"), delta_encoding=False),
    "Qwen3 set": Compression(VOCABULARY, 128, 32, "float32", (0, 1, 2)),
}


def teacher() -> Experiment:
    """sparse_kd's teacher with as many ids as large models have, which is most of its 13 million parameters."""
    small = load_module(SPARSE_KD).teacher()
    tokens = dataclasses.replace(small.data, tokenizer=data.SentencePiece(VOCABULARY, "bpe"), validation_windows=64)
    return dataclasses.replace(
        small, model=ladder.laptop(64, VOCABULARY), data=tokens, batch=4, steps=300,
        optim=AdamW(peak=4e-2, warmup=50), checkpoint_every=100,
    )  # fmt: skip


class Spoken(NamedTuple):
    """What a teacher said of all windows.

    Attributes:
      batch: the windows.
      targets: by the names of KEPT, on the host.
      scalars: of every token, as a cache keeps them.
      logp: log-probabilities of the entries of the targets, [B, L, S] each.
      norm_BL: sum of p^2.
    """

    batch: data.Batch
    targets: dict[str, Any]
    scalars: dict[str, np.ndarray]
    logp: dict[str, np.ndarray]
    norm_BL: np.ndarray


@jax.jit
def say(head: Head, label_BL: jax.Array, index_BL: jax.Array) -> tuple[Any, ...]:
    """The targets of all samplers, the scalars, and the truth about both."""
    key = jax.random.key(0)
    targets = {name: keep(Dense(label_BL, head), key, index_BL, Sharding()) for name, keep in KEPT.items()}
    log_p_BLV = WHOLE.log_softmax(head.logits())
    logp = {name: WHOLE.pick(log_p_BLV, target.id_BLS) for name, target in targets.items()}
    return targets, statistics(head, label_BL, Sharding()), logp, jnp.sum(jnp.exp(2 * log_p_BLV), axis=-1)


def ask(heads: Iterator[Head], batch: data.Batch) -> Spoken:
    index_BL = np.arange(batch.label_BL.size, dtype=np.uint32).reshape(batch.label_BL.shape)
    parts = []
    for number, head in enumerate(heads):
        rows = slice(number * AT_ONCE, (number + 1) * AT_ONCE)
        parts.append(jax.device_get(say(head, batch.label_BL[rows], index_BL[rows])))
    return Spoken(batch, *jax.tree.map(lambda *x: np.concatenate(x), *parts))


def heads(directory: pathlib.Path) -> tuple[list[Head], data.Batch]:
    """The teacher's heads, `AT_ONCE` windows each, and the windows, spread over the validation text."""
    dataset = data.prepare(rundir.read_config(directory).data)
    model, params = frozen.load(directory, "float32", dataset.tokenizer, Mesh().build())
    batch = dataset.held_out.batch(np.arange(WINDOWS) * len(dataset.held_out) // WINDOWS)
    parts = [jax.tree.map(lambda x: x[n : n + AT_ONCE], batch) for n in range(0, WINDOWS, AT_ONCE)]  # noqa: B023
    hidden = jax.jit(lambda part: model.hidden(params, part.tokens_BL, part.segment_BL, part.position_BL)[0])
    return [model.head(params, hidden(part)) for part in parts], batch


def sharpened(head: Head, factor: float) -> Head:
    return dataclasses.replace(head, scale=head.scale * factor)


def factor_for(heads: list[Head], ids: float) -> float:
    """By what to multiply the logits for so many different ids in 50 draws on these tokens, to a hundredth."""

    @jax.jit
    def kept(head: Head, factor: float) -> jax.Array:
        log_p_BLV = WHOLE.log_softmax(factor * head.logits())
        return jnp.mean(jnp.sum(-jnp.expm1(PAPER_ROUNDS * jnp.log1p(-jnp.exp(log_p_BLV))), axis=-1))

    low, high = 0.25, 4.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean([kept(head, middle) for head in heads]) > ids else (low, middle)
    return low


class Size(NamedTuple):
    """Bytes a token: of all files of a cache, of the ids among them, and of counts or levels."""

    total: float
    ids: float
    values: float


def stored(target: Sampled | TopK, layout: codec.Layout, spoken: Spoken) -> tuple[Size, Any]:
    """(sizes, what is read back) of a cache of these targets alone."""
    columns = columns_of(layout)
    tokens, length = target.label_BL.size, layout.length
    index_BL = jnp.arange(tokens, dtype=jnp.uint32).reshape(-1, length)
    packed = layout.pack(jax.tree.map(jnp.asarray, target), uniforms(jax.random.key(1), index_BL))
    extra = {f"{name}_BL": getattr(target, f"{name}_BL") for name in layout.extra}
    rows = to_columns({**packed, **extra, **spoken.scalars}, columns) | {"key": content_keys(spoken.batch)}
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        store = Store(directory, columns, WINDOWS, WINDOWS)
        store.write(0, rows)
        back = layout.target(store.read(np.arange(WINDOWS)), target.label_BL)

        def size(*parts: str) -> float:
            files = directory.joinpath(*parts).rglob("*")
            return sum(file.stat().st_size for file in files if file.is_file()) / tokens

        values = "count" if isinstance(layout, codec.Counts) else "level"
        return Size(size(), size("columns", "id"), size("columns", values)), back


def bounds(id_TS: np.ndarray, rounds: int | None) -> tuple[float, float]:
    """Bytes a token of sets of so many ids, and of ids coded by use; with `rounds`, of their counts besides."""
    held_TS = id_TS != NO_ID
    n_T = held_TS.sum(axis=-1).astype(float)
    counts = 0.0 if rounds is None else log2_choose(rounds - 1.0, n_T - 1).mean() + np.log2(rounds)
    _, place, often = np.unique(id_TS[held_TS], return_inverse=True, return_counts=True)
    by_use = -np.log2(often[place] / held_TS.sum()).sum() / len(id_TS) - (gammaln(n_T + 1) / np.log(2)).mean()
    return (log2_choose(VOCABULARY, n_T).mean() + counts) / 8, (by_use + counts) / 8


def log2_choose(n: Any, k: Any) -> Any:
    return (gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)) / np.log(2)


def rounding(logp_TS: np.ndarray, read_TS: np.ndarray) -> float:
    """KL between the kept entries and what is read of them, each normalised; nats a token."""
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (np.float64(logp_TS), np.float64(read_TS)))
    return (np.exp(p) * (p - q)).sum(axis=-1).mean()


def error(weight_TS: np.ndarray, logp_TS: np.ndarray, norm_T: np.ndarray) -> float:
    """Squared error of the target, over the whole vocabulary."""
    weight_TS = np.float64(weight_TS)
    return (norm_T + (weight_TS * (weight_TS - 2 * np.exp(np.float64(logp_TS)))).sum(axis=-1)).mean()


def ours_sampled(name: str, keep: Any, spoken: Spoken) -> tuple[Any, ...]:
    target, length = spoken.targets[name], spoken.batch.label_BL.shape[1]
    layout = codec.layout(keep, VOCABULARY, length, RESOLUTIONS[0])
    size, back = stored(target, layout, spoken)
    id_TS = target.id_BLS.reshape(-1, keep.size)
    entries = (id_TS != NO_ID).sum(axis=-1).mean()
    order = np.argsort(back.id_BLS, axis=-1)  # the order of the target, whose ids ascend
    weight_BLS = np.take_along_axis(back.weight_BLS, order, axis=-1)
    kept = slice(0, weight_BLS.shape[-1])
    np.testing.assert_array_equal(np.take_along_axis(back.id_BLS, order, axis=-1), target.id_BLS[..., kept])
    off = error(flat(weight_BLS), flat(spoken.logp[name][..., kept]), spoken.norm_BL.ravel())
    rounds = keep.rounds if isinstance(keep, Draws) else None
    return (f"ours: {name}", entries, *size, *bounds(id_TS, rounds), None, off)


def flat(x_BLS: np.ndarray) -> np.ndarray:
    return x_BLS.reshape(-1, x_BLS.shape[-1])


def top(spoken: Spoken, k: int) -> tuple[TopK, np.ndarray]:
    """(the target of the first k, its log-probabilities [T, k])."""
    whole = spoken.targets["top"]
    target = TopK.of(whole.label_BL, jnp.asarray(whole.id_BLS[..., :k]), jnp.asarray(whole.logp_BLS[..., :k]))
    return jax.device_get(target), flat(spoken.logp["top"][..., :k])


def ours_top(spoken: Spoken, k: int, resolution: float) -> tuple[Any, ...]:
    target, logp_TS = top(spoken, k)
    layout = codec.layout(Top(k), VOCABULARY, target.label_BL.shape[1], resolution)
    size, back = stored(target, layout, spoken)
    np.testing.assert_array_equal(back.id_BLS, target.id_BLS)
    read_TS = flat(back.logp_BLS)
    measured = rounding(logp_TS, read_TS), error(np.exp(read_TS), logp_TS, spoken.norm_BL.ravel())
    name = f"ours: top {k}, levels of 1/{round(1 / resolution)}"
    return (name, k, *size, *bounds(flat(target.id_BLS), None), *measured)


def foreign(spoken: Spoken) -> Iterator[tuple[Any, ...]]:
    def row(name: str, k: int, size: float, read_TS: np.ndarray) -> tuple[Any, ...]:
        logp_TS = flat(spoken.logp["top"][..., :k])
        off = error(np.exp(read_TS), logp_TS, spoken.norm_BL.ravel())
        return (name, k, size, None, None, *bounds(id_TS[:, :k], None), rounding(logp_TS, read_TS), off)

    id_TS, logp_TS = flat(spoken.targets["top"].id_BLS), flat(spoken.logp["top"])
    for name, compression in PRESETS.items():
        yield row(f"DistillKit: {name}", compression.k, *distillkit(compression, id_TS, logp_TS))
    for k in SIZES:
        yield row(f"Megatron-LM: top {k}", k, *megatron(id_TS[:, :k], logp_TS[:, :k]))


def table(title: str, rows: list[tuple[Any, ...]]) -> report.Table:
    columns = (
        "kept", "entries", "bytes a token", "of ids", "of counts or levels", "bound, sets", "bound, by use",
        "rounding, KL", "squared error",
    )  # fmt: skip
    formats = ("", ".1f", ".1f", ".1f", ".1f", ".1f", ".1f", ".1e", ".2e")
    shown = [["" if x is None else format(x, f) for x, f in zip(row, formats, strict=True)] for row in rows]
    return report.Table(title, columns, shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where the teacher is trained")
    directory = parser.parse_args().out / "teacher"
    loss = run(teacher(), directory)["loss"]
    plain, batch = heads(directory)
    factor, tables = factor_for([dataclasses.replace(head, h_BLD=head.h_BLD[:1]) for head in plain], PAPER_IDS), []
    for title, by in (("As it is", 1.0), (f"Logits times {factor:.2f}", factor)):
        asked = report.progress([sharpened(head, by) for head in plain], title)
        spoken = ask(iter(asked), batch)
        rows = [ours_sampled(name, keep, spoken) for name, keep in KEPT.items() if name != "top"]
        rows += [ours_top(spoken, k, resolution) for resolution in RESOLUTIONS for k in SIZES] + list(foreign(spoken))
        entropy = spoken.scalars["teacher_entropy_BL"].mean()
        tables.append(table(f"{title}: mean entropy {entropy:.2f} nats", rows))
    tokens = WINDOWS * batch.label_BL.shape[1]
    report.write("cache_size", f"{tokens} tokens of validation text; teacher of {loss:.2f} nats a token there", tables)


if __name__ == "__main__":
    main()
