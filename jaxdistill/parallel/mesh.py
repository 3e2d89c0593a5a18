"""Meshes: how the devices of a job are arranged. `axis` is always an axis of the mesh, `dim` one of a tensor."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from jaxdistill.errors import InputError

AXES = ("data", "fsdp", "context", "expert", "tensor")
"""From the axis whose devices talk least to the one whose devices talk most, and should be neighbours."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The sizes of the mesh's axes; one of them may be -1 and takes the devices that are left.

    What an axis is for, as the table "axes" of `rules` has it:

    Attributes:
      data: replicas of the parameters, each on its own part of the batch.
      fsdp: parts of the batch that also share the parameters out between them.
      tensor: parts of every head, mlp and vocabulary.
      context: parts of every sequence.
      expert: parts of the batch that also share the experts out between them.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = dataclasses.field(default=1, metadata={"later": True})
    expert: int = dataclasses.field(default=1, metadata={"later": True})

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
            raise InputError(
                f"mesh {sizes}: every axis is at least 1, and at most one is -1 (the devices that are left)"
            )

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """The size of each of `AXES` on `num_devices` devices; InputError where they cannot be arranged so."""
        sizes = [getattr(self, axis) for axis in AXES]
        known = math.prod(size for size in sizes if size != -1)
        sizes = [num_devices // known if size == -1 else size for size in sizes]
        if math.prod(sizes) != num_devices:
            asked = " x ".join(f"{axis} {getattr(self, axis)}" for axis in AXES)
            raise InputError(
                f"a mesh of {asked} does not fit {num_devices} devices; set mesh.* so that the product does"
            )
        return tuple(sizes)

    def build(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """The mesh over these devices (default: all of the job), with every axis Auto: the compiler places what the
        tables leave open.

        TPU slices of one job stand along `data`, since what crosses between them takes the slow network: gradients do,
        once a step. Raises InputError where `data` is no multiple of their number.
        """
        devices = list(jax.devices() if devices is None else devices)
        sizes = self.sizes(len(devices))
        # One slice by itself has no index. GPUs may have one that counts hosts, over which fsdp is as good.
        slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"} or {0})
        if sizes[0] % slices:
            raise InputError(
                f"these devices are {slices} slices, between which only data is shared out: set mesh.data, which is "
                f"{sizes[0]}, to a multiple of {slices}"
            )
        # Neighbours on the torus, as jax.make_mesh places them, but for any sizes: it refuses most slices an axis that
        # takes a part of one of their dimensions.
        if slices == 1:
            placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        else:
            within, across = (sizes[0] // slices, *sizes[1:]), (slices, *(1 for _ in sizes[1:]))
            placed = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))
