"""Caches of other systems as caches of this one: what their teachers said, under the tokens it was said of.

DistillKit keeps the tokens with the distributions, and they are held against the data's. Megatron-LM keeps none: its
order is that of the data before any shuffling.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdistill import config as configs
from jaxdistill import rundir
from jaxdistill.cache.columns import to_columns
from jaxdistill.cache.foreign import Sequence, distillkit, megatron
from jaxdistill.cache.reader import columns_of, content_keys
from jaxdistill.cache.recipe import Adopted, Format, Recipe
from jaxdistill.cache.samplers import Top
from jaxdistill.caching.build import PLAN, manifest, most
from jaxdistill.caching.forward import BATCH_TOKENS
from jaxdistill.caching.plan import Plan, plan
from jaxdistill.data import Dataset, Tokens, prepare
from jaxdistill.data.progress import status
from jaxdistill.data.sequences import Padded
from jaxdistill.data.storage import content_key, file_hash
from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.targets import NO_ID, TopK

READ: dict[str, Callable[[str], Iterator[Sequence]]] = {"distillkit": distillkit.read, "megatron": megatron.read}
NOBODY = {"identity": None, "weights": None, "facts": {}}  # what is known of the teacher
Entries = tuple[np.ndarray, ...]  # id_LS and logp_LS, the most probable first


def adopt(
    source: str | Path,
    format: Format,
    out: str | Path,
    data: Tokens,
    *,
    resolution: float = 1 / 64,
    experiment_file: Path | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> Path:
    """Make a cache of top-K targets from another system's, or continue one, and give its directory.

    Position t of a sequence there is about the token that follows tokens[t], and becomes the target of position t of
    its window. Entries are sorted by probability; the tail is the mass they leave, and none where values that were
    stored as a curve sum to more than 1: these are read as shares of it. What only the whole distribution tells, the
    teacher's entropy among it, is not there.

    Args:
      source: the directory of the other cache.
      format: "distillkit" or "megatron"; see `cache.foreign`.
      out: made where it is not there, refused where it holds anything else.
      data: of a source of Sequences, as many as the other cache has; all are taken, whatever its part.
      resolution: distance of two stored log-probabilities, in nats.
      experiment_file: kept beside the configuration.
      cache: of prepared data; default as `data.prepare`.
      quiet: no progress view.

    Raises:
      InputError: the other cache is damaged, is about other sequences or another vocabulary, or has changed since it
        was begun with; anything else a user can mend.
    """
    out, whole = Path(out), dataclasses.replace(data, part=(0, 1), validation_windows=None)
    adopted = Adopted(str(source), format, whole, resolution)
    with rundir.lock(out):
        rundir.prepare(out, adopted, experiment_file)
        if not rundir.is_finished(out):
            _adopt(adopted, out, cache, quiet)
    return out


def _adopt(adopted: Adopted, out: Path, cache: Path | None, quiet: bool) -> None:
    dataset = prepare(adopted.data, cache, quiet)
    fingerprint = _fingerprint(adopted.source, quiet)
    sequences = READ[adopted.format](adopted.source)
    if (first := next(sequences, None)) is None:
        raise InputError(f"{adopted.source} holds no sequences")
    # a teacher of our own would have made it so
    recipe = Recipe(None, adopted.data, Top(first.id_LS.shape[-1]), resolution=adopted.resolution)
    planned = plan(recipe, dataset, out)
    store = dataclasses.replace(planned.store, columns=columns_of(planned.layout, scalars=()))
    planned = dataclasses.replace(planned, store=store)
    _begin(out, len(store.shards), fingerprint, dataset)
    windows: Any = dataclasses.replace(dataset.train, numbers=np.arange(store.rows))
    found = _distributions(adopted.source, itertools.chain([first], sequences), windows, planned.layout)
    _write_shards(planned, windows, found, quiet)
    said = manifest(recipe, planned, dataset, NOBODY)
    tokens = dataset.train_tokens + dataset.validation_tokens - store.rows  # of every sequence one has no label
    own = {
        "identity": configs.identity(adopted),
        "adopted": {"from": adopted.source, "format": adopted.format, "fingerprint": fingerprint},
        "tokens": tokens,
        "bytes_per_token": sum(said["bytes"].values()) / tokens,
        "scalars": [],
        "seed": None,
        "dtype": None,
    }
    rundir.write_json(out / rundir.RESULT, said | own)


def _fingerprint(source: str, quiet: bool) -> str:
    """SHA-256, in hex, of the files of another system's cache."""
    if not Path(source).is_dir():
        raise InputError(f"there is no directory {source}: give the one that the other system wrote")
    with status(f"reading {source}", quiet):
        return content_key({file.name: file_hash(file) for file in Path(source).iterdir() if file.is_file()})


def _begin(out: Path, shards: int, fingerprint: str, dataset: Dataset) -> None:
    """Write what a cache has beside its shards. InputError where shards are there that were made of anything else."""
    begun = {"shards": shards, "adopted": fingerprint, "data": dataset.manifest["train"]["source_fingerprint"]}
    if (out / PLAN).is_file() and rundir.read_json(out / PLAN) != begun:
        raise InputError(f"what {out} is made of has changed since it was begun: delete it and import again")
    rundir.write_json(out / PLAN, begun)
    rundir.write_json(out / "env.json", rundir.environment())
    dataset.tokenizer.save(out / "tokenizer")


def _distributions(source: str, sequences: Iterator[Sequence], windows: Padded, layout: Any) -> Iterator[Entries]:
    """What is known of the labels of every window, which has the sequence of the same number.

    Raises InputError naming a sequence that is not the data's, and where the one holds more sequences than the other.
    """
    for number in range(len(windows)):
        sequence = next(sequences, None)
        if sequence is None:
            raise InputError(f"{source} holds {number} sequences, and the data {len(windows)}: give it the same ones")
        try:
            _check(sequence, windows.sequence(number), layout)
        except InputError as error:
            raise InputError(f"sequence {number} of {source} {error}") from None
        labels = len(windows.sequence(number)) - 1
        order_LS = np.argsort(-sequence.logp_LS[:labels], axis=-1, kind="stable")
        yield tuple(np.take_along_axis(x[:labels], order_LS, axis=-1) for x in (sequence.id_LS, sequence.logp_LS))
    if next(sequences, None) is not None:
        raise InputError(
            f"{source} holds more sequences than the data, which has {len(windows)}: give it the same ones"
        )


def _check(sequence: Sequence, tokens: np.ndarray, layout: Any) -> None:
    id_LS, logp_LS, length = sequence.id_LS, sequence.logp_LS, len(tokens)
    if sequence.tokens is not None and not np.array_equal(sequence.tokens, tokens):
        raise InputError(
            "is about other tokens than the data has there: give the data the same sequences, in this order"
        )
    if id_LS.shape not in ((length - 1, layout.entries), (length, layout.entries)):
        positions, entries = id_LS.shape
        raise InputError(
            f"has {positions} positions of {entries} entries, where {length} tokens need {length - 1} or {length} of "
            f"{layout.entries}"
        )
    held_LS = id_LS != NO_ID
    if wrong := id_LS[held_LS & ((id_LS < 0) | (id_LS >= layout.vocab_size))].tolist():
        raise InputError(f"names the id {wrong[0]}, and the tokenizer has {layout.vocab_size}: name its own")
    sorted_LS = np.sort(id_LS, axis=-1)
    if ((sorted_LS[:, 1:] == sorted_LS[:, :-1]) & (sorted_LS[:, 1:] != NO_ID)).any():
        raise InputError("names an id twice for one token, which no teacher's most probable tokens do")
    with np.errstate(over="ignore"):
        mass_L = np.exp(logp_LS, where=held_LS, out=np.zeros_like(logp_LS)).sum(axis=-1)
    if not (
        np.isfinite(logp_LS).all()
        and held_LS.any(axis=-1).all()
        and mass_L.sum() <= distillkit.LARGEST_MASS * len(mass_L)
    ):
        raise InputError("holds no log-probabilities for some token: make that cache again")


def _write_shards(planned: Plan, windows: Padded, found: Iterator[Entries], quiet: bool) -> None:
    """Every sequence is a row, in the order of the data; shards that are there already are read past."""
    store, size = planned.store, max(1, BATCH_TOKENS // windows.length)
    shown = TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"), TimeRemainingColumn()
    with Progress(*shown, disable=quiet, console=Console(stderr=True)) as bar:
        for shard in bar.track(store.shards):
            is_there = store.is_whole(shard)
            rows, parts = store.shard(shard), []
            for start in range(rows.start, rows.stop, size):
                piece = np.arange(start, min(start + size, rows.stop))
                entries = list(itertools.islice(found, len(piece)))
                if not is_there:
                    parts.append(_columns(planned, windows, piece, entries))
            if not is_there:
                whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                store.write(shard, whole, entries=most(whole))
    next(found, None)  # refuses a sequence that is left


def _columns(planned: Plan, windows: Padded, piece: np.ndarray, entries: list[Entries]) -> dict[str, np.ndarray]:
    """The columns of some windows. Where there is no label, targets are what labels are: the end of a document."""
    batch: Any = windows.batch(piece)
    layout: Any = planned.layout
    shape = (len(piece), windows.length, layout.entries)
    id_BLS: Any = np.full(shape, NO_ID, np.int32)
    logp_BLS: Any = np.full(shape, MASKED, np.float32)
    id_BLS[..., 0], logp_BLS[..., 0] = windows.eos_id, 0
    for row, (id_LS, logp_LS) in enumerate(entries):
        id_BLS[row, : len(id_LS)], logp_BLS[row, : len(id_LS)] = id_LS, logp_LS
    target = TopK.of(batch.label_BL, id_BLS, logp_BLS)
    packed = layout.pack(target, None) | {"logtail_BL": target.logtail_BL}
    return to_columns(packed, planned.store.columns) | {"key": content_keys(batch)}
