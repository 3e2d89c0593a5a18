"""What the devices of a compiled program say to each other: kind, size, how often, and along which axes of the mesh."""

import dataclasses
import math
import re
from collections.abc import Iterable

import jax
import numpy as np

from jaxdistill.parallel import hlo
from jaxdistill.parallel.hlo import Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of KINDS.
      bytes: of the whole array that a group of devices makes or shares out: the result of a gather, the operand of a
        reduction.
      times: how often a step runs it.
      groups: the devices that talk to each other, int [number, size], by their place in the mesh; of a permute the
        pairs (from, to).
      overlaps: whether it is started and awaited apart, with work between.
      where: the place in the traced program that it comes from.
    """

    kind: str
    bytes: int
    times: float
    groups: np.ndarray
    overlaps: bool
    where: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends at one time, with rings: (n - 1) / n of the array, twice that to reduce it for
        all, and all of it to permute."""
        size = self.groups.shape[1]
        share = 1 if self.kind == "collective-permute" else (size - 1) / size
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)

    def axes(self, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> tuple[str, ...]:
        """The axes of the mesh along which its devices differ."""
        sizes = tuple(mesh.shape.values())
        places = np.stack(np.unravel_index(self.groups, sizes), axis=-1)
        differs = np.any(places != places[:, :1], axis=(0, 1))
        return tuple(axis for axis, here in zip(mesh.axis_names, differs, strict=True) if here)


def of(module: Module, num_devices: int) -> list[Collective]:
    """The collectives that a program runs, those between a device and itself left out."""
    found = (
        _read(part, times, num_devices, part.operation.endswith("-start") or line.operation in hlo.ASYNCHRONOUS)
        for line, times in hlo.executed(module)
        for part in (line, *module.inside(line))
    )
    return [collective for collective in found if collective is not None and collective.groups.shape[1] > 1]


def _read(line: Instruction, times: float, num_devices: int, overlaps: bool) -> Collective | None:
    kind = line.operation.removesuffix("-start")
    if kind not in KINDS:
        return None
    operand = sum(hlo.size(shape) for shape in line.operands)
    groups = _pairs(line.rest) if kind == "collective-permute" else _groups(line.rest, num_devices)
    size = operand * groups.shape[1] if kind == "all-gather" else operand
    return Collective(kind, size, times, groups, overlaps, line.where)


def _pairs(text: str) -> np.ndarray:
    found = re.search(r"source_target_pairs=\{([\d,{}]*)\}", text)
    pairs = np.array(re.findall(r"\{(\d+),(\d+)\}", found[1] if found else ""), int).reshape(-1, 2)
    return pairs[pairs[:, 0] != pairs[:, 1]] if np.any(pairs[:, 0] != pairs[:, 1]) else pairs[:, :1]


def _groups(text: str, num_devices: int) -> np.ndarray:
    """Replica groups in any of the forms that XLA writes: lists, a reshaped and transposed iota, axes of a mesh."""
    if found := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text):
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _iota(found[2], found[3]).reshape([int(n) for n in found[1].split(",")])
    ids = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]" + ids + r" \{([^}]*)\}", text):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        together = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", found[4])
        groups = _along(
            axes, [(name, int(first or 1), int(size) if size else axes[name]) for name, first, size in together]
        )
        return groups if found[2] is None else _iota(found[2], found[3]).reshape(-1)[groups]
    assert "replica_groups=" not in text or "replica_groups={}" in text, text
    return np.arange(num_devices)[None]  # no groups: all devices are one


def _iota(shape: str, order: str | None) -> np.ndarray:
    """The devices by their numbers, reshaped and transposed: "2,16" and "1,0"."""
    sizes, axes = ([int(n) for n in part.split(",")] if part else None for part in (shape, order))
    return np.arange(math.prod(sizes or ())).reshape(sizes).transpose(axes)


def _along(axes: dict[str, int], together: Iterable[tuple[str, int, int]]) -> np.ndarray:
    """Groups of devices that differ along axes, or along parts of them: (axis, size of what stands before, size)."""
    names, sizes, chosen = [], [], []
    parts = {name: (first, size) for name, first, size in together}
    for name, whole in axes.items():
        first, size = parts.get(name, (whole, 1))
        for part, extent in ((f"{name} before", first), (name, size), (f"{name} after", whole // (first * size))):
            names.append(part)
            sizes.append(extent)
    chosen = [names.index(name) for name in parts]
    others = [place for place in range(len(names)) if place not in chosen]
    devices = np.arange(math.prod(sizes)).reshape(sizes).transpose(others + chosen)
    return devices.reshape(-1, math.prod(sizes[place] for place in chosen))
