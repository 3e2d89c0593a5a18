"""What a device of each kind can do, for estimates: one JAX device, which is half a chip on v4 and TPU7x."""

import dataclasses
import math
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The vendor's peaks.

    Attributes:
      flops: of bf16 matmuls, 1/s.
      memory: bytes that a program may use.
      bandwidth: of that memory, bytes/s.
      links: bytes/s that a device sends to all neighbours together.
      dims: of the torus that the links make; 0 where every device reaches every other through a switch.
      ring: devices along a dimension from which on it closes to a ring.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float
    dims: int
    ring: int = 1

    def line(self, spans: tuple[int, ...]) -> float:
        """Bytes/s that a device of a group sends, which spans the torus by so many devices in each dimension.

        A ring in each dimension, both ways at once; an open line has one way for each direction of a ring.
        """
        if not self.dims:
            return self.links
        return sum(self.links / self.dims / (1 if size >= self.ring else 2) for size in spans if size > 1)


TPU: Mapping[str, Chip] = {
    "v4": Chip(137.5e12, 15.25 * GIB, 0.614e12, 150e9, dims=3, ring=4),
    "v5e": Chip(197e12, 15.75 * GIB, 0.819e12, 200e9, dims=2, ring=16),
    "v5p": Chip(459e12, 95.74 * GIB, 2.765e12, 600e9, dims=3, ring=4),
    "v6e": Chip(918e12, 31.25 * GIB, 1.638e12, 448e9, dims=2, ring=16),
    "tpu7x": Chip(1153e12, 94.75 * GIB, 3.69e12, 600e9, dims=3, ring=4),
}
"""Peaks from cloud.google.com/tpu/docs (system architecture of each version, read in November 2026): interchip
interconnect of 2400, 1600, 4800, 3584 and 9600 Gbit/s a chip. Memory is what libtpu 0.0.42's compiler says is
available when it refuses a program."""

GPU: Mapping[str, Chip] = {
    "A100": Chip(312e12, 80e9, 2.04e12, 300e9, dims=0),
    "H100": Chip(989e12, 80e9, 3.35e12, 450e9, dims=0),
    "H200": Chip(989e12, 141e9, 4.8e12, 450e9, dims=0),
}
"""Peaks without sparsity and NVLink in one direction, from the vendor's data sheets of the SXM modules."""


def of_gpu(kind: str) -> Chip | None:
    """By `jax.Device.device_kind`, such as "NVIDIA H200"; None for one that is not in the table."""
    return next((chip for name, chip in GPU.items() if name in kind), None)


def torus(version: str, number: int) -> tuple[int, ...] | None:
    """The default shape of a slice, from the number in its name: v5p-64 is (2, 4, 4). None where it is no power of two.

    The names of v4 and v5p and of TPU7x count cores, two a chip, those of v5e and v6e count chips.
    """
    chip = TPU[version]
    exponent = int(math.log2(number)) - (chip.dims == 3)
    sizes = (2 ** ((exponent + place) // chip.dims) for place in range(chip.dims))
    shape = tuple(sorted(sizes, key=lambda size: (size == 1, size)))
    return shape if exponent > 0 and math.prod(shape) * (2 if chip.dims == 3 else 1) == number else None
