"""A cache in words: what it holds and what each part of it takes."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdistill import rundir
from jaxdistill.cache.reader import Cache
from jaxdistill.errors import InputError

SAMPLE = 64  # windows whose entries are counted


def averages(directory: Path) -> dict[str, float]:
    """What a finished cache takes for a token: "entries" on average, of a sample of windows, and "bytes" on disk.

    The entries of a teacher with another tokenizer are chunks.
    """
    manifest = rundir.read_result(directory)
    cache = Cache.open(directory, manifest)
    store, sample = cache.store, _sample(cache.store.rows)
    number = store.read(sample, ["number"])["number"] if "number" in store.columns else np.zeros(1)
    if cache.holds_chunks:
        number = store.read(sample, ["level"])["level"] > 0
    return {"entries": float(number.mean()), "bytes": manifest["bytes_per_token"]}


def _sample(rows: int) -> np.ndarray:
    return np.unique(np.linspace(0, rows - 1, SAMPLE).astype(int))


def _number(averages: dict[str, float], manifest: dict[str, Any]) -> str:
    most = f", {manifest['entries']} at most" if manifest["entries"] else ""
    return f"{averages['entries']:.2g} on average{most}"


def _of_teacher(cache: Cache) -> dict[str, str]:
    if "adopted" in cache.manifest:
        return {"teacher": "unknown, of {format} in {from}".format(**cache.manifest["adopted"])}
    teacher = cache.manifest["teacher"]
    name, size = teacher["facts"]["teacher"], teacher["facts"]["N_T"]
    said = {"teacher": f"{name}, {size:,} parameters, identity {teacher['identity']}"}
    if not cache.scalars:
        return said | {"teacher's loss": f"{_nats_of_chunks(cache):.3f} nats a token in chunks"}
    names = ["teacher_cross_entropy", "teacher_entropy"]
    nats = {name: x.mean(dtype=float) for name, x in cache.store.read(_sample(cache.store.rows), names).items()}
    return said | {
        "teacher's loss": f"{nats['teacher_cross_entropy']:.3f} nats a token",
        "teacher's entropy": f"{nats['teacher_entropy']:.3f} nats a token",
    }


def _nats_of_chunks(cache: Cache) -> float:
    """What a token of the student costs the teacher on average, of those whose chunks count."""
    rows = cache.store.read(_sample(cache.store.rows), ["step", "level"])
    said: Any = cache.layout.target(rows, None)
    counts_BL = np.take_along_axis(said.is_real_BC, np.maximum(said.chunk_BL, 0), 1) & (said.chunk_BL >= 0)
    return float(-said.logp_BC.sum(dtype=float) / counts_BL.sum())


def show(directory: Path, console: Console) -> None:
    """Print it. Raises InputError where there is no finished cache or a part of it is missing."""
    manifest = rundir.read_result(directory)
    if "cache_version" not in manifest:
        raise InputError(f"{directory} is the directory of a run, not of a cache")
    cache = Cache.open(directory, manifest)
    tokens = manifest["tokens"]
    facts = {
        "targets": ", ".join(f"{name}={value}" for name, value in manifest["keep"].items()),
        "windows": ", ".join(f"{number:,} {split}" for split, number in manifest["windows"].items()),
        "over": manifest["about"],
        "tokens": f"{tokens:,} in {len(cache.store.shards)} shards",
        f"{'chunks' if cache.holds_chunks else 'entries'} a token": _number(averages(directory), manifest),
        **_of_teacher(cache),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)
    sizes = Table("column", "MB", "bytes a token")
    for name, size in sorted(manifest["bytes"].items(), key=lambda item: -item[1]):
        sizes.add_row(name, f"{size / 1e6:.2f}", f"{size / tokens:.2f}")
    total = sum(manifest["bytes"].values())
    sizes.add_row("all", f"{total / 1e6:.2f}", f"{total / tokens:.2f}")
    console.print(sizes)
