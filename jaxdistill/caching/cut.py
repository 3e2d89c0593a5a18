"""A smaller cache from a larger one, without the teacher: fewer entries of top-K targets, or fewer windows."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill import data, rundir
from jaxdistill.cache import codec
from jaxdistill.cache.columns import to_columns
from jaxdistill.cache.reader import Cache
from jaxdistill.cache.recipe import Recipe
from jaxdistill.cache.samplers import Top
from jaxdistill.caching.build import PLAN, manifest, most
from jaxdistill.caching.plan import Plan, plan
from jaxdistill.data.progress import status
from jaxdistill.errors import InputError


def cut(
    directory: str | Path, out: str | Path, *, first: int | None = None, windows: int | None = None,
    cache: Path | None = None, quiet: bool = False,
) -> Path:  # fmt: skip
    """Write to `out` the first entries of every token, or the first windows of the students' order, and give its path.

    Args:
      directory: of a finished cache.
      out: a new directory.
      first: how many entries of each token to keep, of a cache of top-K targets; None for all.
      windows: how many windows to keep, as `Recipe.windows`; None for all.
      cache: of prepared data; default as `data.prepare`.
      quiet: no progress view.

    Raises:
      InputError: the cache holds draws, which have no first ones, or fewer entries or windows than asked for.
    """
    directory, out = Path(directory), Path(out)
    recipe = rundir.read_config(directory)
    if not isinstance(recipe, Recipe):
        raise InputError(
            f"{directory} is made of another system's cache, all of whose windows are kept: use Cached.first"
        )
    kept = Cache.open(directory, rundir.read_result(directory), first)
    if first is None and windows is None:
        raise InputError("nothing to cut: say how many entries (--first) or windows (--windows) to keep")
    keep = recipe.keep if first is None else Top(first)
    smaller = dataclasses.replace(recipe, keep=keep, windows=recipe.windows if windows is None else windows)
    dataset = data.prepare(recipe.data, cache, quiet)
    source, target = plan(recipe, dataset, directory), plan(smaller, dataset, out)
    rows = _rows(source, target, directory)
    with rundir.lock(out), status(f"writing {len(target.store.shards)} shards", quiet):
        rundir.prepare(out, smaller)
        for shard in target.store.shards if not rundir.is_finished(out) else ():
            columns = _columns(kept, target.layout, rows[target.store.shard(shard)])
            target.store.write(shard, columns, entries=most(columns))
        dataset.tokenizer.save(out / "tokenizer")
        rundir.write_json(out / PLAN, {"shards": len(target.store.shards)})
        rundir.write_json(out / rundir.RESULT, manifest(smaller, target, dataset, kept.manifest["teacher"]))
    return out


def _rows(source: Plan, target: Plan, directory: Path) -> np.ndarray:
    """The row in the source of every row of the target."""
    first, rows = 0, []
    for split, windows in source.windows.items():
        if missing := np.setdiff1d(target.windows[split], windows).size:
            raise InputError(
                f"{directory} lacks {missing} of the windows asked for: it holds {len(windows)} for {split}"
            )
        rows.append(first + np.searchsorted(windows, target.windows[split]))
        first += len(windows)
    return np.concatenate(rows)


def _columns(kept: Cache, layout: codec.Layout, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of these rows: as they are, or with the targets cut."""
    read = kept.store.read(rows)
    if kept.first is None:
        return read
    target: Any = kept.target(read, np.zeros((len(rows), layout.length), np.int32))
    packed = layout.pack(target, np.zeros((len(rows), layout.length), np.float32))
    columns = to_columns(
        packed | {"logtail_BL": target.logtail_BL}, {**layout.columns, "logtail": kept.store.columns["logtail"]}
    )
    return {name: read[name] for name in (*kept.scalars, "key")} | columns
