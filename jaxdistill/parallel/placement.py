"""Placement: which devices of a job are a teacher's own, and how arrays get from some devices to others."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxdistill.errors import InputError
from jaxdistill.parallel.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class Disjoint:
    """The teacher on devices of its own: the last of the job; the student's mesh is over the others.

    Attributes:
      devices: how many.
      mesh: how they are arranged.

    Raises InputError where there are none, or where the mesh does not fit them.
    """

    devices: int = 1
    mesh: Mesh = Mesh()

    def __post_init__(self):
        if self.devices < 1:
            raise InputError(f"placement.devices is {self.devices}; a teacher apart needs at least 1")
        self.mesh.sizes(self.devices)

    def split(self, devices: Sequence[jax.Device]) -> tuple[list[jax.Device], list[jax.Device]]:
        """(the student's devices, the teacher's).

        Raises InputError where none is left for the student, or where several processes own them.
        """
        if len({device.process_index for device in devices}) > 1:
            raise InputError(
                "a teacher on devices of its own needs one process that sees all devices: place it beside the student "
                "(teacher.placement=None), or build a cache"
            )
        if self.devices >= len(devices):
            raise InputError(
                f"the teacher's placement takes {self.devices} devices and the job has {len(devices)}: leave some to "
                "the student with teacher.placement.devices, or place the teacher beside it (teacher.placement=None)"
            )
        return list(devices[: -self.devices]), list(devices[-self.devices :])


def carry(x: jax.Array, to: NamedSharding) -> jax.Array:
    """x, split by rows over some devices, on others, split by rows as `to` says; nothing waits, nothing meets the host.

    `jax.device_put` does the same through the host where the two are not split alike. Here rows are cut where they lie
    and joined where they arrive.
    """
    held = {_rows(shard.index, x.shape): shard.data for shard in x.addressable_shards}

    def arrive(device: jax.Device, index: Any) -> jax.Array:
        start, stop = _rows(index, x.shape)
        parts = [
            rows[max(start, first) - first : min(stop, last) - first]
            for (first, last), rows in sorted(held.items(), key=lambda item: item[0])
            if first < stop and start < last
        ]
        moved = jax.device_put(parts, device)
        return moved[0] if len(moved) == 1 else jnp.concatenate(moved)

    places = to.addressable_devices_indices_map(x.shape)
    return jax.make_array_from_single_device_arrays(x.shape, to, [arrive(*place) for place in places.items()])


def _rows(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    return index[0].indices(shape[0])[:2]
