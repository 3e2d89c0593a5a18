"""Compiling for devices that are not here: which there are, what the compiler needs, and what it says of memory."""

import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxdistill.errors import InputError
from jaxdistill.parallel import chips
from jaxdistill.parallel.chips import Chip

BESIDE = Path(sys.prefix) / "libtpu"  # where `make test` puts it, out of JAX's way
SIZES = {2: "4x4", 3: "2x2x4"}
KNOWN = (
    f"{', '.join(f'{version}:{SIZES[chip.dims]}' for version, chip in chips.TPU.items())} and other sizes, v5p-64 and "
    "the like, gpu:N for GPUs of this machine, cpu:N for pretended devices"
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices that are compiled for.

    Attributes:
      name: as JAX knows it, "v5p:2x4x4", or "cpu:8".
      platform: "tpu", "gpu" or "cpu".
      shape: devices in each dimension of a TPU's torus; the number of them on other platforms.
      chip: what one can do; None where that is not known.
    """

    name: str
    platform: str
    shape: tuple[int, ...]
    chip: Chip | None

    def environment(self) -> dict[str, str]:
        """What the environment of the process that compiles must have, beside its own.

        Raises InputError where libtpu, the TPU's compiler, is not installed.
        """
        if self.platform == "gpu":
            return {}
        if self.platform == "cpu":
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={self.shape[0]}"
            return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
        if not has_libtpu():
            raise InputError(
                f"the TPU's compiler is not here: pip install --no-deps --target {BESIDE} libtpu (no TPU is needed)"
            )
        return {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(BESIDE)))),
            "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask what this machine is
            "TPU_ACCELERATOR_TYPE": "v5litepod-8",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no chip to fight over
        }

    def devices(self) -> list[jax.Device]:
        """The devices, in a process with that environment. InputError where they do not exist."""
        if self.platform == "tpu":
            from jax.experimental import topologies

            try:
                return list(topologies.get_topology_desc(platform="tpu", topology_name=self.name).devices)
            except Exception as error:
                reason = str(error).splitlines()[0].partition(": ")[2] or error
                raise InputError(f"there is no topology {self.name} ({reason}); there are {KNOWN}") from error
        try:
            found = jax.devices(self.platform)
        except RuntimeError:
            found = []
        if len(found) < self.shape[0]:
            raise InputError(f"{self.name}: this machine has {len(found)} devices of this kind; there are {KNOWN}")
        return found[: self.shape[0]]


def has_libtpu() -> bool:
    """Whether the TPU's compiler is installed, among the packages or beside them."""
    return importlib.util.find_spec("libtpu") is not None or BESIDE.is_dir()


def topology(name: str) -> Topology:
    """The topology of this name; InputError that lists what there is where it is none."""
    if found := re.fullmatch(r"(cpu|gpu):([1-9]\d*)", name):
        return Topology(name, found[1], (int(found[2]),), None)
    slice_of = re.fullmatch(r"(\w+)-([1-9]\d*)", name)
    if slice_of and slice_of[1] in chips.TPU:
        shape = chips.torus(slice_of[1], int(slice_of[2]))
        if shape is None:
            raise InputError(f"there is no topology {name!r}: say its shape; there are {KNOWN}")
        name = f"{slice_of[1]}:{'x'.join(map(str, shape))}"
    found = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)", name)
    if not found or found[1] not in chips.TPU:
        raise InputError(f"there is no topology {name!r}; there are {KNOWN}")
    version, shape = found[1], tuple(int(size) for size in found[2].split("x"))
    if len(shape) != chips.TPU[version].dims:
        raise InputError(
            f"there is no topology {name!r}: {version} has {chips.TPU[version].dims} dimensions; there are {KNOWN}"
        )
    return Topology(name, "tpu", shape, chips.TPU[version])


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of memory on each device: "arguments", "outputs", "temporary", "reused" (outputs that take the place of
    donated arguments), "code", and "total", which is what the program needs at most."""
    said: Any = compiled.memory_analysis()
    parts = {
        "arguments": said.argument_size_in_bytes,
        "outputs": said.output_size_in_bytes,
        "reused": said.alias_size_in_bytes,
        "temporary": said.temp_size_in_bytes,
        "code": said.generated_code_size_in_bytes,
    }
    return parts | {"total": sum(parts.values()) - 2 * parts["reused"]}


def out_of_memory(sentence: str) -> Mapping[str, int] | None:
    """Bytes "needed" and "available" by what the compiler says when it refuses; None where it complains of else."""
    for pattern in (
        r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
        r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    ):
        if found := re.search(pattern, sentence):
            needed, unit, available, other = found.groups()
            return {"needed": round(float(needed) * UNITS[unit]), "available": round(float(available) * UNITS[other])}
    return None
