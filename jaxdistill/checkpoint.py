"""Checkpoints: Orbax, behind the four things a run needs of it.

A checkpoint holds the State and, as plain numbers beside it, the run's identity and the position in the data (the step:
a batch is a function of seed and step). Arrays are restored onto whatever devices the caller describes.
"""

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from absl import logging
from orbax.checkpoint import v1 as ocp

from jaxdistill.errors import InputError
from jaxdistill.step import State

logging.set_verbosity(logging.FATAL)  # what Orbax logs as an error it also raises, and here it becomes a sentence

CHUNK_BYTES = 4 * 2**20
"""Arrays are stored in pieces of this size, so that one layer can be read without decompressing all of them."""


def _context(processes: set[int] | None = None) -> ocp.Context:
    """Of what is written or read by these processes; None for all of the job."""
    storage = ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=CHUNK_BYTES)
    saving = ocp.options.ArrayOptions.Saving(storage_options=storage)
    arrays = ocp.options.ArrayOptions(saving=saving)
    if processes is None:
        return ocp.Context(array_options=arrays)
    who = ocp.options.MultiprocessingOptions(
        primary_host=min(processes), active_processes=processes, barrier_sync_key_prefix="-".join(map(str, processes))
    )
    return ocp.Context(array_options=arrays, multiprocessing_options=who)


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: where they lie.
      identity: of the run; a checkpoint of another one is refused.
      keep: how many of the latest to keep.
    """

    def __init__(self, directory: Path, identity: str, keep: int = 2):
        self._directory, self._identity = Path(directory), identity
        policy: Any = ocp.training.preservation_policies.LatestN(keep)
        self._orbax = ocp.training.Checkpointer(
            str(self._directory.absolute()),
            context=_context(),
            preservation_policy=policy,
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, None where there is none."""
        return self._orbax.latest.step if self._orbax.latest else None

    def save(self, state: State, step: int, **numbers: float) -> None:
        """Begin to write the state after `step` steps; training goes on meanwhile. A step that is there stays."""
        if self.latest() == step:
            return
        metadata: dict[str, Any] = {"identity": self._identity, "data_position": step, **numbers}
        content = {"state": _as_dict(state)}
        self._check_space(content)
        with _writing(self._directory):
            self._orbax.save_checkpointables_async(step, content, force=True, custom_metadata=metadata)

    def _check_space(self, content: Any) -> None:
        """Refuse before anything is written: the background writers' own answer to a full disk is late and long."""
        needed = sum(x.addressable_shards[0].data.nbytes * len(x.addressable_shards) for x in jax.tree.leaves(content))
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise InputError(
                f"no space left for a checkpoint in {self._directory}: it takes {needed / 1e6:.1f} MB "
                f"and {free / 1e6:.1f} MB are free; make room and run the same command again"
            )

    def restore(self, abstract: State) -> tuple[State, dict[str, Any]]:
        """The newest state, on the devices that `abstract` (ShapeDtypeStructs with shardings) names, and its numbers.

        Raises InputError where the checkpoint is another run's, or cannot be read.
        """
        step = self.latest()
        where = self._directory / str(step)
        metadata = read_metadata(where)
        if metadata.get("identity") != self._identity:
            raise InputError(
                f"checkpoint {where} belongs to another experiment (identity {metadata.get('identity')}, "
                f"this one is {self._identity}); remove it, or choose another --out"
            )
        with _reading(where):
            loaded = self._orbax.load_checkpointables(step, {"state": _as_dict(abstract)})["state"]
        return State(**loaded), metadata

    def wait(self) -> None:
        """Until every checkpoint begun is on disk."""
        with _writing(self._directory):
            self._orbax.wait()

    def close(self) -> None:
        with _writing(self._directory):
            self._orbax.close()


def _as_dict(state: State) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


@contextlib.contextmanager
def _answering(what: str, advice: str) -> Generator[None]:
    """Turns whatever Orbax and TensorStore raise into one sentence; their texts put the reason last."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rpartition('": ')[2][-200:]
        raise InputError(f"{what} ({reason}); {advice}") from error


def _reading(where: Path):
    return _answering(f"checkpoint {where} cannot be read", "delete it to continue from an earlier one")


def _writing(where: Path):
    return _answering(f"{where} cannot be written", "make room or permit it, and run the same command again")


def read_metadata(where: Path) -> dict[str, Any]:
    """The numbers saved beside the state of one checkpoint directory."""
    with _reading(where):
        metadata: Any = ocp.checkpointables_metadata(str(where.absolute())).custom_metadata
        return dict(metadata or {})


def steps(directory: Path) -> list[int]:
    """The steps of the whole checkpoints in a directory, ascending."""
    entries = Path(directory).iterdir() if Path(directory).is_dir() else ()
    return sorted(int(entry.name) for entry in entries if entry.name.isdigit())


def load_params(directory: Path, step: int, abstract: dict[str, Any]) -> Any:
    """The parameters of one checkpoint alone, in the dtypes and on the devices that `abstract` describes.

    One array after the other: what Orbax reads in one go it holds twice, and a model may fill the memory.
    """

    def load(path: tuple[Any, ...], leaf: Any) -> Any:
        return load_param(directory, step, tuple(key.key for key in path), leaf)

    return jax.tree_util.tree_map_with_path(load, abstract)


def load_param(directory: Path, step: int, keys: tuple[str, ...], abstract: jax.ShapeDtypeStruct) -> jax.Array:
    """One parameter of one checkpoint, which `keys` lead to, as `load_params`."""
    alone = functools.reduce(lambda inner, key: {key: inner}, reversed(("params", *keys)), cast(Any, abstract))
    return jax.tree.leaves(load_parts(directory, step, alone))[0]


def save_params(directory: Path, step: int, params: Any) -> None:
    """Write parameters alone as the checkpoint of a step, in place of one that is there."""
    where = Path(directory) / str(step)
    with _writing(where), _context():
        ocp.save_checkpointables(str(where.absolute()), {"state": {"params": params}}, overwrite=True)


def load_parts(directory: Path, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """Some fields of the State in one checkpoint, as `load_params`."""
    where = Path(directory) / str(step)
    devices = {device for leaf in jax.tree.leaves(abstract) for device in leaf.sharding.device_set}
    processes = {device.process_index for device in devices}
    context = _context(processes if len(processes) < jax.process_count() else None)
    context.pytree_options.loading.partial_load = True
    with _reading(where), context:
        return ocp.load(str(where.absolute()), abstract, checkpointable_name="state")


def in_dtype(abstract: Any, dtype: Any) -> Any:
    """ShapeDtypeStructs of parameters in this dtype; integers, which are tables, stay as they are."""

    def own(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)

    return jax.tree.map(own, abstract)


def abstract_like(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with shardings, to restore onto."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
