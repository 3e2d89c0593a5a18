"""Verifying a cache: its bytes are those that were written, and they are this teacher's targets."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill import frozen, rundir
from jaxdistill.cache.chunks import agreement
from jaxdistill.cache.reader import Cache
from jaxdistill.cache.states import States
from jaxdistill.caching.forward import Teacher, prepare
from jaxdistill.caching.plan import plan
from jaxdistill.data.progress import status
from jaxdistill.errors import InputError
from jaxdistill.losses.targets import Chunked, TopK

LEAST_OVERLAP = 0.98  # rounding moves a draw or a rank now and then; another teacher moves most


def verify(
    directory: str | Path, *, windows: int = 16, cache: Path | None = None, quiet: bool = False
) -> dict[str, float]:
    """Read every file of a finished cache again, and hold a random sample of it against the teacher.

    Args:
      directory: of the cache.
      windows: how many to score again; 0 for none, as there are of another system's cache, whose teacher is not here.
      cache: of prepared data; default as `data.prepare`.
      quiet: no progress view.

    Returns:
      "shards" and "windows" that were checked; "overlap", the mean over tokens of sum_v min(stored, computed); and the
      largest difference of a stored scalar, in nats.

    Raises:
      InputError: a shard is missing or damaged; the teacher is another one; its targets are others.
    """
    directory = Path(directory)
    kept = Cache.open(directory, rundir.read_result(directory))
    with status(f"reading {len(kept.store.shards)} shards", quiet):
        checked: dict[str, float] = {"shards": sum(1 for _ in kept.store.verify())}
    if windows and kept.manifest["teacher"]["weights"] is not None:
        with status("scoring a sample again", quiet):
            checked |= _score_again(kept, windows, cache, quiet)
    return checked


def _score_again(kept: Cache, windows: int, cache: Path | None, quiet: bool) -> dict[str, float]:
    recipe = rundir.read_config(kept.directory)
    source = frozen.find(recipe.sources, kept.directory)["teacher"]
    dataset, marks = prepare(recipe, source, cache, quiet)
    planned = plan(recipe, dataset, kept.directory)
    teacher = Teacher(recipe, dataset, planned.layout, source, marks=marks)
    weights = frozen.fingerprint(teacher.params)
    if weights != kept.manifest["teacher"]["weights"]:
        raise InputError(
            f"{kept.directory} was made by a teacher with weights {kept.manifest['teacher']['weights']}, and {source} "
            f"has {weights}: it was trained anew since; build another cache"
        )
    generator = np.random.default_rng(0)
    rows = np.sort(generator.choice(planned.store.rows, min(windows, planned.store.rows), replace=False))
    overlaps, furthest = [], 0.0
    for row in rows.tolist():
        split, numbers = next(planned.pieces(range(row, row + 1), 1))
        spoken = teacher.start(split, numbers).columns()
        stored = kept.store.read(np.array([row]))
        if not np.array_equal(stored["key"], spoken["key"]):
            raise InputError(
                f"row {row} of {kept.directory} holds another window than the data has there: build it again"
            )
        label_BL = np.zeros((1, recipe.data.length), np.int32)
        overlaps.append(overlap(*(planned.layout.target(columns, label_BL) for columns in (stored, spoken))))
        differences = (np.abs(stored[name].astype(float) - spoken[name]).max() for name in kept.scalars)
        furthest = max([furthest, *map(float, differences)])
    found = {"windows": len(rows), "overlap": float(np.mean(overlaps)), "largest_difference": furthest}
    if found["overlap"] < LEAST_OVERLAP:
        raise InputError(
            f"{kept.directory} does not hold what its teacher says: {found['overlap']:.1%} of the mass agrees in a "
            f"sample of {len(rows)} windows; build it again"
        )
    return found


def overlap(a: Any, b: Any) -> float:
    """The mean over tokens of sum_v min(a_v, b_v) / sum_v a_v, for two targets of the same kind.

    Of hidden states the share of numbers that are at most one step apart, and of chunks that of tokens whose chunks are
    worth the same.
    """
    if isinstance(a, Chunked):
        return agreement(a, b)
    if isinstance(a, States):
        return float(np.mean(np.abs(a.state_BLC.astype(int) - b.state_BLC) <= 1))
    shares = []
    for id_a, w_a, id_b, w_b in zip(*(x.reshape(-1, x.shape[-1]) for t in (a, b) for x in _entries(t)), strict=True):
        _, in_a, in_b = np.intersect1d(id_a[w_a > 0], id_b[w_b > 0], assume_unique=True, return_indices=True)
        shares.append(np.minimum(w_a[w_a > 0][in_a], w_b[w_b > 0][in_b]).sum() / w_a.sum())
    return float(np.mean(shares))


def _entries(target: Any) -> tuple[np.ndarray, np.ndarray]:
    return target.id_BLS, np.exp(target.logp_BLS) if isinstance(target, TopK) else target.weight_BLS
