"""Block sizes of the kernels for the chips they were chosen for.

A block is what a core holds in its fast memory at one time. It changes how fast a kernel is, never what it computes.
"""

import dataclasses

from jaxdistill import device
from jaxdistill.errors import InputError

LANES = 128
"""The width of a vector register on TPU, and of a bin of the vocabulary on GPU."""

MIB = 2**20


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise InputError(sentence)


@dataclasses.dataclass(frozen=True)
class Tile:
    """A block of logits: `tokens` x `vocabulary`, both multiples of 128.

    Raises:
      InputError: a size that is no positive multiple.
    """

    tokens: int
    vocabulary: int

    def __post_init__(self):
        for name in ("tokens", "vocabulary"):
            size = getattr(self, name)
            _require(size > 0 and size % LANES == 0, f"a tile's {name}={size} is no positive multiple of {LANES}")


@dataclasses.dataclass(frozen=True)
class TpuBlocks:
    """Blocks of the TPU kernels.

    Attributes:
      elementwise: tile of finished logits that one grid step of `statistics` and `gradient` reads.
      forward, backward: tile of logits that one step of the fused kernels forms.
      chunk: tokens whose gradient the fused backward keeps in VMEM, [chunk, D] fp32; a multiple of `backward.tokens`.
      cores: 2 where one device is two cores that share a grid (v4, v5p), else 1.
      vmem_bytes: VMEM that a kernel may take on one core.

    Raises:
      InputError: sizes that do not fit each other.
    """

    elementwise: Tile
    forward: Tile
    backward: Tile
    chunk: int
    cores: int
    vmem_bytes: int

    def __post_init__(self):
        _require(
            self.chunk > 0 and self.chunk % self.backward.tokens == 0,
            f"chunk={self.chunk} is no positive multiple of backward.tokens={self.backward.tokens}",
        )
        _require(self.cores in (1, 2), f"a TPU device has 1 or 2 cores, not {self.cores}")
        _require(self.vmem_bytes > 0, f"vmem_bytes={self.vmem_bytes} leaves a kernel no memory")


@dataclasses.dataclass(frozen=True)
class GpuBlocks:
    """Blocks of the Mosaic GPU kernel, in which two warpgroups multiply `tokens` x 128 rows of the vocabulary each.

    Attributes:
      tokens: rows of h in a tile; a multiple of 64, the rows of one wgmma instruction.
      depth: columns of D that one pipeline stage holds, 64 (a 128-byte row of bf16, the widest swizzle) or 32.
      stages: pipeline stages in shared memory.
      group: tiles of tokens that walk through the vocabulary together, so that they find its rows in the L2 cache.
      multiprocessors: blocks of the persistent grid.

    Raises:
      InputError: sizes that the kernel cannot have.
    """

    tokens: int
    depth: int
    stages: int
    group: int
    multiprocessors: int

    def __post_init__(self):
        _require(self.tokens in (64, 128), f"a GPU tile has 64 or 128 tokens, not {self.tokens}")
        _require(self.depth in (32, 64), f"a pipeline stage holds 32 or 64 columns, not {self.depth}")
        for name in ("stages", "group", "multiprocessors"):
            _require(getattr(self, name) > 0, f"{name}={getattr(self, name)} is not positive")


Blocks = TpuBlocks | GpuBlocks

# How they were chosen: compiled for each chip at D = 4096, V = 128256, S = 50 by benchmarks/ahead_of_time.py, which
# counts the cycles of the static schedule; none of them has been timed on a TPU. A tile of logits must be so large that
# its matmul hides the softmax: 512 x 1024 on the slower matrix units, 1024 x 1024 on the faster. The backward pass
# keeps [1024, D] of dh and two [vocabulary, D] of dW in VMEM: 128 MiB a core on v5e and v6e, 64 MiB on v5p and tpu7x,
# whose tiles are narrower therefore; on tpu7x, 512 tokens instead of 256 save 31 % of the bundles.
_V5E = TpuBlocks(Tile(256, 2048), Tile(512, 1024), Tile(256, 512), chunk=1024, cores=1, vmem_bytes=100 * MIB)
_V5P = TpuBlocks(Tile(256, 2048), Tile(512, 1024), Tile(256, 256), chunk=1024, cores=2, vmem_bytes=60 * MIB)
_V6E = TpuBlocks(Tile(256, 4096), Tile(1024, 1024), Tile(256, 512), chunk=1024, cores=1, vmem_bytes=100 * MIB)
_TPU7X = TpuBlocks(Tile(256, 4096), Tile(1024, 1024), Tile(512, 256), chunk=1024, cores=1, vmem_bytes=60 * MIB)
# A prototype of this kernel compiled for H200 spilled no register, and had no shared memory for a fifth stage. This one
# has been interpreted and lowered, not yet run on a GPU.
_HOPPER = GpuBlocks(tokens=128, depth=64, stages=4, group=8, multiprocessors=132)

TABLE: dict[str, Blocks] = {
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _TPU7X,
    "NVIDIA H100": _HOPPER,
    "NVIDIA H200": _HOPPER,
}


def for_device(kind: str) -> Blocks:
    """The blocks for `jax.Device.device_kind`; what follows a GPU's name ("NVIDIA H100 80GB HBM3") does not matter.

    Raises:
      InputError: a chip that is not in the table.
    """
    name = " ".join(kind.split()[:2]) if kind.startswith("NVIDIA") else kind
    _require(name in TABLE, f"no block sizes are known for {kind!r}, only for {', '.join(TABLE)}: pass blocks=...")
    return TABLE[name]


def tpu_blocks(blocks: TpuBlocks | None) -> TpuBlocks:
    """`blocks`, or those for the first device here; InputError where it is no TPU of the table."""
    found = blocks or for_device(device.kind())
    if not isinstance(found, TpuBlocks):
        raise InputError(
            "a TPU kernel takes TpuBlocks and runs on a TPU: pass blocks=..., or take the kernel for a GPU"
        )
    return found


def gpu_blocks(blocks: GpuBlocks | None) -> GpuBlocks:
    """`blocks`, or those for the first device here; InputError where it is no GPU of the table."""
    found = blocks or for_device(device.kind())
    if not isinstance(found, GpuBlocks):
        raise InputError(
            "a GPU kernel takes GpuBlocks and runs on a GPU: pass blocks=..., or take the kernel for a TPU"
        )
    return found
