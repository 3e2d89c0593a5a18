"""Building caches: the teacher reads every window once, and what it says is kept.

The devices compute, the host packs what they computed last, and a thread writes what was packed before: the teacher's
forward pass is what a build takes. Killed at any moment, the same command goes on from the last shard.
"""

import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdistill import config as configs
from jaxdistill import data, frozen, rundir
from jaxdistill.apart import ahead
from jaxdistill.cache import codec
from jaxdistill.cache.reader import VERSION
from jaxdistill.cache.recipe import Recipe
from jaxdistill.caching.forward import Teacher, prepare
from jaxdistill.caching.plan import Plan, plan
from jaxdistill.data.storage import content_key
from jaxdistill.errors import InputError
from jaxdistill.parallel import together


def build(
    recipe: Recipe,
    directory: str | Path,
    *,
    part: tuple[int, int] | None = None,
    batch: int | None = None,
    experiment_file: Path | None = None,
    cache: Path | None = None,
    quiet: bool = False,
    patience: float = 0.0,
) -> Path:
    """Build a cache, or continue one, and give its directory.

    Args:
      recipe: what it holds.
      directory: made where it is not there, refused where it holds anything else.
      part: (i, n) builds every n-th shard from the i-th on, for n machines that share the directory; the last one to
        finish writes the manifest. None takes this process's part of the job.
      batch: windows in a forward pass of the teacher; changes no byte where the hardware computes a row by itself.
      experiment_file: kept beside the configuration.
      cache: of prepared data; default as `data.prepare`.
      quiet: no progress view.
      patience: seconds to wait for another process to leave the directory.

    Raises:
      InputError: anything a user can mend.
    """
    directory = Path(directory)
    if part is not None and together.is_several():
        raise InputError("the processes of a job share a cache out by themselves: leave the part away")
    index, parts = part or (jax.process_index(), jax.process_count())
    if not 0 <= index < parts:
        raise InputError(f"part {index}/{parts}: parts are counted from 0 to {parts - 1}")
    name = ".lock" if parts == 1 else f".lock-{index}-of-{parts}"
    with rundir.lock(directory, patience, name):
        together.first(lambda: rundir.prepare(directory, recipe, experiment_file))
        if not together.once(lambda: rundir.is_finished(directory)):
            _build(recipe, directory, (index, parts), batch, cache, quiet)
        together.wait()
    return directory


def _build(
    recipe: Recipe, directory: Path, part: tuple[int, int], batch: int | None, cache: Path | None, quiet: bool
) -> None:
    source = frozen.find(recipe.sources, directory)["teacher"]
    dataset, marks = together.first(lambda: prepare(recipe, source, cache, quiet))
    planned = plan(recipe, dataset, directory)
    store = planned.store
    own = [shard for shard in store.shards if shard % part[1] == part[0]]
    todo = [shard for shard in own if not store.is_whole(shard)]
    began = time.monotonic()
    # All processes of a job load the teacher, also those without a shard to make: Orbax names its barriers by how often
    # a process has loaded and saved. Where the numbers differed, the next checkpoint would wait for ever.
    if todo or together.is_several():
        rundir.write_json(directory / "env.json", rundir.environment())
        dataset.tokenizer.save(directory / "tokenizer")
        local = None if part[1] == 1 else jax.local_devices()
        teacher = Teacher(recipe, dataset, planned.layout, source, batch, local, marks)
        _begin(directory, planned, dataset, _teacher_facts(source, teacher.params))
        if todo:
            _announce(planned, todo, teacher, directory, quiet)
            _write_shards(planned, todo, teacher, quiet)
    if all(map(store.is_committed, store.shards)):
        teacher = rundir.read_json(directory / PLAN)["teacher"]
        rundir.write_json(directory / rundir.RESULT, manifest(recipe, planned, dataset, teacher))
    elif not quiet:
        print(f"part {part[0]} of {part[1]} is done in {time.monotonic() - began:.0f} s; other parts are not yet")


PLAN = "plan.json"


def _begin(directory: Path, planned: Plan, dataset: data.Dataset, teacher: dict[str, Any]) -> None:
    """Write down what the shards are made of, or refuse to add to those that were made of something else."""
    now = {
        "shards": len(planned.store.shards),
        "teacher": teacher,
        "tokenizer": dataset.tokenizer.fingerprint,
        "data": content_key(dataset.manifest),
    }
    before = rundir.read_json(directory / PLAN) if (directory / PLAN).is_file() else now
    if changed := [what for what in now if before.get(what) != now[what]]:
        raise InputError(
            f"the {changed[0]} has changed since the building of {directory} began, and a cache is of one: delete it, "
            "or choose another --out"
        )
    rundir.write_json(directory / PLAN, now)


def progress(directory: Path) -> float:
    """The share of the shards that is written."""
    planned = directory / PLAN
    written = len(list(directory.glob("commits/*.json")))
    return written / rundir.read_json(planned)["shards"] if planned.is_file() else 0.0


def _teacher_facts(directory: Path, params: Any) -> dict[str, Any]:
    identity = rundir.read_result(directory)["identity"]
    return {"identity": identity, "weights": frozen.fingerprint(params), "facts": frozen.facts(directory)}


def _announce(planned: Plan, todo: list[int], teacher: Teacher, directory: Path, quiet: bool) -> None:
    """Say how large the cache will be, and refuse to begin where that does not fit the disk."""
    store = planned.store
    split, windows = next(planned.pieces(range(store.rows), teacher.batch))
    columns = teacher.start(split, windows).columns()
    with tempfile.TemporaryDirectory() as scratch:
        size = 1 << (len(windows) - 1).bit_length()
        trial = dataclasses.replace(store, directory=Path(scratch), rows=len(windows), shard_rows=size)
        trial.write(0, columns)
        a_row = sum(record["bytes"] for record in trial.check_shard(0)["files"].values()) / len(windows)
    expected, free = a_row * store.rows, shutil.disk_usage(directory).free
    left = a_row * sum(len(store.shard(shard)) for shard in todo)
    if left > free:
        raise InputError(
            f"the cache needs about {left / 1e9:.3g} GB more, and {directory} has {free / 1e9:.3g} GB free: free some "
            "space, or keep fewer entries or windows"
        )
    if not quiet:
        length = planned.layout.length
        print(
            f"{directory}: {store.rows * length:,} tokens as {len(store.shards)} shards, some {expected / 1e6:,.1f} MB "
            f"({a_row / length:.1f} bytes a token); {len(todo)} shards to do"
        )


def _write_shards(planned: Plan, todo: list[int], teacher: Teacher, quiet: bool) -> None:
    """The devices are one batch ahead of the packing, and the packing one shard ahead of the disk."""
    store, length = planned.store, planned.layout.length
    total = sum(len(store.shard(shard)) for shard in todo) * length
    with _bar(total, quiet) as advance, ThreadPoolExecutor(1) as writer:
        writing: Future | None = None
        for shard in todo:
            parts = []
            for spoken in ahead(teacher.start(*piece) for piece in planned.pieces(store.shard(shard), teacher.batch)):
                parts.append(spoken.columns())
                advance(len(spoken.key) * length)
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            if writing is not None:
                writing.result()
            writing = writer.submit(store.write, shard, whole, entries=most(whole))
        if writing is not None:
            writing.result()


def most(columns: dict[str, np.ndarray]) -> int:
    """The most entries that a token holds in some columns."""
    return int(columns["number"].max()) if "number" in columns else 0


@contextlib.contextmanager
def _bar(tokens: int, quiet: bool) -> Generator[Callable[[int], None]]:
    columns = (
        TextColumn("teacher"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"), TimeRemainingColumn(),
    )  # fmt: skip
    began, done = time.monotonic(), 0
    with Progress(*columns, disable=quiet, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=tokens, rate=0)

        def advance(number: int) -> None:
            nonlocal done
            done += number
            progress.update(task, advance=number, rate=done / max(time.monotonic() - began, 1e-9))

        yield advance


def manifest(recipe: Recipe, planned: Plan, dataset: data.Dataset, teacher: dict[str, Any]) -> dict[str, Any]:
    """What a finished cache says of itself. InputError where a shard is missing or has another size than it should."""
    store, commits = planned.store, planned.store.check()
    size = {name: sum(record["files"][name]["bytes"] for record in commits.values()) for name in store.columns}
    tokens = store.rows * planned.layout.length
    return {
        "cache_version": VERSION,
        "identity": configs.identity(recipe),
        "layout": codec.describe(planned.layout),
        "keep": dict(configs.fields(recipe.keep, "keep.")),
        "entries": max(record["entries"] for record in commits.values()),
        "rows": store.rows,
        "shard_rows": store.shard_rows,
        "windows": {split: len(windows) for split, windows in planned.windows.items()},
        "tokens": tokens,
        "bytes": size,
        "bytes_per_token": sum(size.values()) / tokens,
        "seed": recipe.seed,
        "dtype": recipe.dtype,
        "teacher": teacher,
        "tokenizer": dataset.tokenizer.fingerprint,
        "data": dataset.manifest,
        "about": f"windows of {recipe.data.length} tokens of {recipe.data.source}, {recipe.data.tokenizer}",
    }
