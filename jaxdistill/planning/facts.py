"""What a compiled step says of itself: memory, work, and what its devices say to each other."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxdistill.parallel import aot, collectives, costs, hlo
from jaxdistill.parallel.aot import Topology
from jaxdistill.parallel.chips import Chip
from jaxdistill.parallel.collectives import Collective
from jaxdistill.parallel.hlo import Module

EFFICIENCY = 0.75
"""Share of the peak that XLA's matmuls are taken to reach: 76 to 78 % were published for large ones on TPU7x."""

LARGEST = 6  # arrays that are named
NOT_MADE = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "opt-barrier"}


@dataclasses.dataclass(frozen=True)
class Talk:
    """The collectives of one kind along the same axes.

    Attributes:
      kind, axes, overlaps: as in `collectives.Collective`; the axes joined by " x ".
      times: how often a step runs one.
      bytes: of the arrays, and `sent` what each device sends of them, in all.
      largest: bytes of the largest array.
      seconds: at the links' peak.
    """

    kind: str
    axes: str
    overlaps: bool
    times: float
    bytes: float
    sent: float
    largest: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Facts:
    """One step on one device of the mesh.

    Attributes:
      memory: bytes, as `aot.memory` has them.
      largest: the largest arrays that the step makes, "bytes", "shape" and "where" of each.
      flops: of its matmuls.
      moved: bytes of main memory read and written.
      matmul_seconds, memory_seconds: each alone, at EFFICIENCY and at the bandwidth's peak.
      busy_seconds: of all instructions one after another, each as long as the longer of the two.
      talk: what it sends.
      unknown_loops: loops of unknown length, which count once.
    """

    memory: dict[str, int]
    largest: list[dict[str, Any]]
    flops: float
    moved: float
    matmul_seconds: float | None
    memory_seconds: float | None
    busy_seconds: float | None
    talk: list[Talk]
    unknown_loops: int


def of(compiled: jax.stages.Compiled, mesh: jax.sharding.Mesh, topology: Topology) -> Facts:
    """The facts of a step that was compiled for a topology."""
    module = hlo.parse(compiled.as_text() or "")
    chip = topology.chip
    work = [(times, costs.flops(module, line), costs.traffic(module, line)) for line, times in hlo.executed(module)]
    times, flops, moved = np.array(work).T
    matmul = times * flops / (chip.flops * EFFICIENCY if chip else np.nan)
    memory = times * moved / (chip.bandwidth if chip else np.nan)
    return Facts(
        memory=aot.memory(compiled),
        largest=_largest(module),
        flops=float(times @ flops),
        moved=float(times @ moved),
        matmul_seconds=_known(matmul.sum()),
        memory_seconds=_known(memory.sum()),
        busy_seconds=_known(np.maximum(matmul, memory).sum()),
        talk=_talk(collectives.of(module, mesh.size), mesh, chip),
        unknown_loops=hlo.unknown_loops(module),
    )


def _known(seconds: float) -> float | None:
    """None in place of NaN, which stands for what the peaks of a device would tell."""
    return None if np.isnan(seconds) else float(seconds)


def _largest(module: Module) -> list[dict[str, Any]]:
    """The largest arrays in main memory; they need not be alive at the same time."""
    found: dict[str, dict[str, Any]] = {}
    for line, _ in hlo.executed(module):
        if line.operation not in NOT_MADE and not line.operation.endswith(("-start", "-done")):
            for dtype, dims, layout in hlo.ARRAY.findall(line.shape):
                shape = f"{dtype}[{dims}]"
                size = hlo.size(shape + layout, main_memory=True)
                found.setdefault(shape, {"bytes": size, "shape": shape, "where": line.where})
    return sorted(found.values(), key=lambda array: -array["bytes"])[:LARGEST]


def _talk(found: Iterable[Collective], mesh: jax.sharding.Mesh, chip: Chip | None) -> list[Talk]:
    groups: dict[tuple[str, tuple[str, ...], bool], list[Collective]] = {}
    for one in found:
        groups.setdefault((one.kind, one.axes(mesh), one.overlaps), []).append(one)
    talk = []
    for (kind, axes, overlaps), ones in groups.items():
        sent = sum(one.times * one.sent for one in ones)
        talk.append(
            Talk(
                kind,
                " x ".join(axes),
                overlaps,
                times=sum(one.times for one in ones),
                bytes=sum(one.times * one.bytes for one in ones),
                sent=sent,
                largest=max(one.bytes for one in ones),
                seconds=sent / chip.line(spans(mesh, axes)) if chip else None,
            )
        )
    return sorted(talk, key=lambda line: -line.sent)


def spans(mesh: jax.sharding.Mesh, axes: tuple[str, ...]) -> tuple[int, ...]:
    """How many places of the torus the devices along these axes take in each of its dimensions."""
    index = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
    group = mesh.devices[index].flat
    coords = np.array([getattr(device, "coords", (device.id,)) for device in group])
    return tuple(len(set(column)) for column in coords.T)
