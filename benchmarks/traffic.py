"""Bytes that a compiled program reads and writes, by its own text: XLA's count, with loops run as often as they are.

XLA's cost analysis counts the body of a loop once, which says little of a program that is one scan. Here every
instruction of a computation counts its operands and its result, and the body of a loop as often as the loop is known to
turn. What is fused stays in registers; a slice counts what it takes, an update what it puts.
"""

import math
import re
from collections.abc import Iterator

ITEM = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "iota", "after-all"}
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")


def size(shape: str) -> int:
    """Bytes of a shape as HLO writes it, tuples included."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(ITEM.get(dtype, 0) * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in found)


def computations(text: str) -> Iterator[tuple[str, list[tuple[str, str, str, str]]]]:
    """(name, [(instruction, shape, operation, rest of the line)]) for every computation."""
    name, lines = "", []
    for line in text.splitlines():
        if begins := HEAD.match(line):
            name, lines = begins[1], []
        elif line.startswith("}"):
            yield name, lines
        elif found := LINE.match(line):
            lines.append(found.groups())


def moved(text: str) -> int:
    """Bytes read and written by a compiled program, given `compiled.as_text()`."""
    bodies = dict(computations(text))
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)

    def of(name: str) -> int:
        shapes = {instruction: shape for instruction, shape, _, _ in bodies[name]}
        return sum(traffic(shape, operation, rest, shapes) for _, shape, operation, rest in bodies[name])

    def traffic(shape: str, operation: str, rest: str, shapes: dict[str, str]) -> int:
        if operation == "while":
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
            return int(turns[1] if turns else 1) * of(re.search(r"body=%?([\w.\-]+)", rest)[1])
        if operation == "call":
            return of(re.search(r"to_apply=%?([\w.\-]+)", rest)[1])
        if operation in NO_TRAFFIC:
            return 0
        operands = [size(shapes[o]) for o in re.findall(r"%([\w.\-]+)", rest.split("), ")[0]) if o in shapes]
        fused = re.search(r"calls=%?([\w.\-]+)", rest)
        inside = {op for _, _, op, _ in bodies[fused[1]]} if fused else {operation}
        if "dynamic-update-slice" in inside:  # in place: what is put, read once and written once
            return 2 * sum(o for o in operands if o < size(shape))
        if inside & {"dynamic-slice", "gather"}:  # a part of the largest operand, as large as the result
            return 2 * size(shape) + sum(operands) - max(operands, default=0)
        return size(shape) + sum(operands)

    return of(entry[1])
