"""What an instruction of a compiled program costs: floating-point operations of its matmuls, bytes of main memory."""

import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from jaxdistill.parallel import hlo
from jaxdistill.parallel.hlo import Instruction, Module

NO_TRAFFIC = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id", "replica-id",
    "opt-barrier", "copy-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "async-done",
    "call-done",
}  # fmt: skip
KERNELS: Mapping[str, float] = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
"""Matmuls of queries with keys, or of what is shaped alike, in JAX's attention kernels for TPU. Their causal mask
leaves half of each; where devices share out the queries, what it leaves to the last of them."""


def moved(text: str) -> int:
    """Bytes read and written by a compiled program, given `compiled.as_text()`.

    Every instruction counts its operands and its result, and the body of a loop as often as it turns. What is fused
    stays in registers; a slice counts what it takes, an update what it puts.
    """
    module = hlo.parse(text)
    return round(sum(times * traffic(module, instruction) for instruction, times in hlo.executed(module)))


def traffic(module: Module, instruction: Instruction) -> int:
    """Bytes of main memory that an instruction reads and writes."""
    if instruction.operation in NO_TRAFFIC:
        return 0
    operands = [hlo.size(shape, main_memory=True) for shape in instruction.operands]
    result = hlo.size(instruction.shape, main_memory=True)
    if instruction.operation.endswith("-start"):  # its tuple repeats the operand: read here, written there
        return 2 * sum(operands)
    inside = {part.operation for part in module.inside(instruction)} or {instruction.operation}
    if "dynamic-update-slice" in inside:  # in place: what is put, read once and written once
        return 2 * sum(operand for operand in operands if operand < result)
    if inside & {"dynamic-slice", "gather"}:  # a part of the largest operand, as large as the result
        return 2 * result + sum(operands) - max(operands, default=0)
    return result + sum(operands)


def flops(module: Module, instruction: Instruction) -> float:
    """Floating-point operations of the matmuls in an instruction, two for a multiply-add."""
    parts = [instruction, *module.inside(instruction)]
    return sum(COUNTED[part.operation](part) for part in parts if part.operation in COUNTED)


def _dot(line: Instruction) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
    return 2 * math.prod(hlo.dims(line.shape)) * _picked(line.operands[0], contracted[1] if contracted else "")


def _picked(shape: str, positions: str) -> int:
    sizes = hlo.dims(shape)
    return math.prod(sizes[int(place)] for place in re.findall(r"\d+", positions))


def _convolution(line: Instruction) -> float:
    """What TPUs make of every matmul: a dimension of a batch is a window that moves with its image, so only the taps
    that meet a number count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest)
    window = re.search(r"window=\{([^}]*)\}", line.rest)
    assert labels, line
    image, kernel, out = (
        dict(zip(label, hlo.dims(shape), strict=True))
        for label, shape in zip(labels.groups(), (*line.operands[:2], line.shape), strict=True)
    )
    taps = 1
    for place, settings in enumerate(_window(window[1] if window else "")):
        taps *= _taps(image[str(place)], kernel[str(place)], out[str(place)], **settings)
    return 2 * taps * out["b"] * out["f"] * kernel["i"]


def _window(text: str) -> list[dict[str, int]]:
    """Settings of each spatial dimension: "size=8x2 pad=7_7x0_0" has two."""
    given = {name: value.split("x") for name, value in re.findall(r"(\w+)=([\dx_\-]+)", text)}
    return [
        {
            "stride": int(given["stride"][place]) if "stride" in given else 1,
            "low": int(given["pad"][place].split("_")[0]) if "pad" in given else 0,
            "dilation": int(given["lhs_dilate"][place]) if "lhs_dilate" in given else 1,
            "spread": int(given["rhs_dilate"][place]) if "rhs_dilate" in given else 1,
        }
        for place in range(len(given.get("size", ())))
    ]


def _taps(image: int, kernel: int, out: int, *, stride: int, low: int, dilation: int, spread: int) -> int:
    """Pairs of an output and a tap of the kernel that meet a number of the image, not padding or a gap."""
    few, many = sorted(((out, stride), (kernel, spread)))
    rest = np.arange(many[0]) * many[1] - low
    places = (rest + step * few[1] for step in range(few[0]))
    return sum(int(np.sum((at >= 0) & (at <= (image - 1) * dilation) & (at % dilation == 0))) for at in places)


def _custom_call(line: Instruction) -> float:
    """A matmul that XLA leaves to the library of a GPU, or a kernel of known work."""
    if contracted := re.search(r'lhs_contracting_dimensions":\[([^\]]*)\]', line.rest):
        return 2 * math.prod(hlo.dims(line.shape)) * _picked(line.operands[0], contracted[1])
    matmuls = next((number for name, number in KERNELS.items() if line.name.startswith(name)), 0)
    arrays = [hlo.dims(shape) for shape in line.operands if shape.startswith(("bf16", "f32")) and shape.count(",") > 1]
    if not matmuls:
        return 0.0
    queries, keys = arrays[:2]
    return matmuls * math.prod(queries) * (2 * keys[-2] - queries[-2])


COUNTED: Mapping[str, Callable[[Instruction], float]] = {
    "dot": _dot,
    "convolution": _convolution,
    "custom-call": _custom_call,
}
