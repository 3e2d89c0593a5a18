"""Reading what runs leave behind, on any machine: `load_run` for one, `load_table` for all of a sweep."""

import csv
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill import checkpoint, metrics, rundir
from jaxdistill.data import Tokenizer, load_tokenizer
from jaxdistill.ensemble import Ensemble
from jaxdistill.errors import InputError
from jaxdistill.experiment import Experiment
from jaxdistill.models.transformer import Transformer
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.program import make_model

COLUMNS = (
    "run", "kind", "protocol", "status", "N", "N_total", "D", "loss", "bits_per_byte", "flops", "teacher", "N_T", "D_T",
    "L_T", "forward_kl", "seed", "seconds", "identity", "tokenizer", "validation", "directory",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read back.

    Attributes:
      experiment: its configuration.
      step: the optimizer steps behind `params`.
      model: with `hidden(params, tokens_BL, ...)` and `head(params, h_BLD)`.
      params: the parameters, on the devices of this process.
      result: the content of result.json, None for a run that has not finished.
      directory: where it lies.
    """

    experiment: Experiment
    step: int
    model: Transformer
    params: Any
    result: dict[str, Any] | None
    directory: Path

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer it was trained with."""
        return load_tokenizer(self.directory / "tokenizer")

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.jsonl."""
        return metrics.read(self.directory / rundir.METRICS)


def load_run(path: str | Path, step: int | None = None, *, mesh: Mesh | None = None, dtype: Any = jnp.float32) -> Run:
    """A run's configuration, model and parameters, on any number of devices and without the code that trained it.

    Args:
      path: the run directory.
      step: which checkpoint; None for the last.
      mesh: how to lay the parameters over the devices of this process; None puts them whole on the first device.
      dtype: of the loaded parameters.

    Raises:
      InputError: no run there, no such checkpoint, or one that cannot be read.
    """
    directory = Path(path)
    experiment, step = rundir.read_config(directory), _step(directory, step)
    built = mesh.build() if mesh is not None else Mesh(fsdp=1).build(jax.devices()[:1])
    model = make_model(experiment, built)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    on_mesh = checkpoint.abstract_like(checkpoint.in_dtype(abstract, dtype), rules.shardings(abstract, built))
    params = checkpoint.load_params(directory / "checkpoints", step, on_mesh)
    result = rundir.read_result(directory) if rundir.is_finished(directory) else None
    return Run(experiment, step, model, params, result, directory)


def with_others(run: Run, others: Sequence[str | Path], of: str, mesh: Mesh) -> tuple[Any, Any]:
    """A run's model and parameters, or those of its ensemble with other runs (`ensemble.Ensemble`), as `load_run`.

    Raises InputError where one of them has another tokenizer.
    """
    loaded = [run, *(load_run(path, mesh=mesh) for path in others)]
    for other in loaded[1:]:
        if other.tokenizer.fingerprint != run.tokenizer.fingerprint:
            raise InputError(
                f"{other.directory} has another tokenizer than {run.directory}, and an ensemble has one: move them "
                "to one first, with start=Transplanted(...)"
            )
    if len(loaded) == 1:
        return run.model, run.params
    return Ensemble(tuple(each.model for each in loaded), of), tuple(each.params for each in loaded)


RECENT = 4  # arrays of a `stored_params` in memory: queries, keys and values may be one tensor for others


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A parameter on disk, which is read when a part of it is asked for.

    Attributes:
      shape, dtype: of the array.
      read: gives it.
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], jax.Array]

    def __getitem__(self, index: Any) -> jax.Array:
        return self.read()[index]


def stored_params(path: str | Path, dtype: Any) -> dict[str, Any]:
    """The parameters of a run's last checkpoint as `Stored`, of which only the RECENT ones are in memory.

    For what goes through a model array by array, however large it is. Raises InputError as `load_run`.
    """
    directory = Path(path)
    step, model = _step(directory), make_model(rundir.read_config(directory))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    @functools.lru_cache(maxsize=RECENT)
    def read(keys: tuple[str, ...], shape: tuple[int, ...], own: Any) -> jax.Array:
        leaf = jax.ShapeDtypeStruct(shape, own, sharding=device)
        return checkpoint.load_param(directory / "checkpoints", step, keys, leaf)

    def stored(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> Stored:
        keys = tuple(key.key for key in path)
        return Stored(x.shape, x.dtype, functools.partial(read, keys, x.shape, x.dtype))

    abstract = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(stored, checkpoint.in_dtype(abstract, jnp.dtype(dtype)))


def _step(directory: Path, step: int | None = None) -> int:
    """The step of a checkpoint, or of the last one; InputError where it is not there."""
    steps = checkpoint.steps(directory / "checkpoints")
    if not steps or (step is not None and step not in steps):
        have = f"those of steps {', '.join(map(str, steps))}" if steps else "none"
        raise InputError(f"{directory} has no checkpoint{'' if step is None else f' of step {step}'}; there are {have}")
    return steps[-1] if step is None else step


def rows(directory: str | Path) -> list[dict[str, Any]]:
    """All runs below a directory, a dict each with the keys of `COLUMNS`; unfinished ones have a status and no loss."""
    found = {
        path.parent: rundir.read_config(path.parent) for path in sorted(Path(directory).glob(f"*/{rundir.CONFIG}"))
    }
    return [_row(path, own, Path(directory)) for path, own in found.items() if isinstance(own, Experiment)]


def _row(directory: Path, experiment: Experiment, root: Path) -> dict[str, Any]:
    finished = rundir.is_finished(directory)
    row = {
        "run": directory.name,
        "kind": "distilled" if experiment.teacher is not None else "supervised",
        "protocol": experiment.protocol,
        "status": "finished" if finished else "unfinished",
        "N": experiment.model.num_params,
        "N_total": experiment.model.num_params_total,
        "D": experiment.tokens,
        "seed": experiment.seed,
        "directory": str(directory.relative_to(root)),
    }
    if finished:
        result = rundir.read_result(directory)
        row |= {name: result[name] for name in COLUMNS if name in result and name not in row}
        row |= {"forward_kl": result["validation"].get("forward_kl"), **_measured_on(result, experiment)}
    return row


def _measured_on(result: dict[str, Any], experiment: Experiment) -> dict[str, str]:
    """Digests of the tokenizer and of the validation windows: losses compare where both agree."""
    held_out = {name: value for name, value in result["data"]["validation"].items() if name != "source"}
    cut = {"length": experiment.data.length, "windows": experiment.data.validation_windows}
    digest = hashlib.sha256(json.dumps(held_out | cut, sort_keys=True).encode()).hexdigest()
    return {"tokenizer": result["tokenizer"][:12], "validation": digest[:12]}


def write_table(directory: str | Path) -> Path:
    """Write runs.csv, which any spreadsheet or `pandas.read_csv` reads, and give its path."""
    if not (table := rows(directory)):
        raise InputError(f"{directory} holds no runs")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({name: "" if row.get(name) is None else row[name] for name in COLUMNS} for row in table)
    path = Path(directory) / "runs.csv"
    rundir.write_atomically(path, text.getvalue())
    return path


def load_table(directory: str | Path) -> dict[str, Sequence[Any]]:
    """All runs below a directory as columns, ready for `pandas.DataFrame(...)`; a missing number is NaN."""
    table = rows(directory)
    words = ("run", "kind", "protocol", "status", "teacher", "identity", "tokenizer", "validation", "directory")
    blank = {name: "" if name in words else np.nan for name in COLUMNS}
    return {name: [blank[name] if row.get(name) is None else row[name] for row in table] for name in COLUMNS}
