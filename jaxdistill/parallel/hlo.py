"""A compiled program, read from its own text: what it runs, how often, and what each instruction costs.

XLA's cost analysis counts the body of a loop once, which says little of a program that is a scan over layers inside a
scan over micro-batches. Here the body of a loop counts as often as the loop is known to turn.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

ITEM = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")
ASYNCHRONOUS = ("async-start", "call-start")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, shape, operation: as the text has them; a shape is "bf16[8,128]{1,0}" or a tuple of such.
      operands: the shapes of what it takes.
      names: what it takes, by name.
      rest: of the line, from the operands on.
      is_root: whether it is what the computation gives.
    """

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    names: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def where(self) -> str:
        """The place in the traced program that it comes from, "" where it has none."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Module:
    """The computations of a program by name, and the one that it begins with."""

    computations: dict[str, list[Instruction]]
    entry: str

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """What a fusion or an asynchronous call is made of; on TPU7x collectives are calls of its SparseCores."""
        if instruction.operation in ("fusion", *ASYNCHRONOUS):
            for part in self.computations[_called(instruction)]:
                yield part
                yield from self.inside(part)

    def turns(self, loop: Instruction) -> int | None:
        """How often a `while` turns; None where that is not known.

        XLA says so, or else its condition and its body do: the loops of JAX and of XLA's own making start at zero and
        add a constant until they have reached another.
        """
        if said := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(said[1])
        condition = self._lines(re.search(r"condition=%?([\w.\-]+)", loop.rest))
        body = self._lines(CALLED.search(loop.rest))
        test = next((line for line in condition.values() if line.is_root), None)
        if test is None or "direction=LT" not in test.rest:
            return None
        limit, counter = _constant(test, condition), _place(test, condition)
        if limit is None or counter is None:
            return None
        result = next(line for line in body.values() if line.is_root)
        step = _constant(body[result.names[counter]], body) if result.operation == "tuple" else None
        return math.ceil(limit / (step or 1))

    def _lines(self, name: re.Match[str] | None) -> dict[str, Instruction]:
        return {line.name: line for line in self.computations[name[1]]} if name else {}


def _constant(line: Instruction, lines: dict[str, Instruction]) -> int | None:
    """The one constant among what a line takes."""
    found = [lines[name].rest for name in line.names if name in lines and lines[name].operation == "constant"]
    return int(found[0].split(")")[0]) if len(found) == 1 else None


def _place(line: Instruction, lines: dict[str, Instruction]) -> int | None:
    """Which element of a loop's state a line takes."""
    found = [re.search(r"index=(\d+)", lines[name].rest) for name in line.names if name in lines]
    return next((int(place[1]) for place in found if place), None)


def parse(text: str) -> Module:
    """The module that `compiled.as_text()` writes out."""
    computations, entry, shapes, current = {}, "", {}, []
    for line in text.splitlines():
        if begins := HEAD.match(line):
            entry = begins[2] if begins[1] else entry
            shapes, current = {}, computations.setdefault(begins[2], [])
        elif found := LINE.match(line):
            root, name, shape, operation, rest = found.groups()
            names = tuple(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
            operands = tuple(shapes[other] for other in names if other in shapes)
            shapes[name] = shape
            current.append(Instruction(name, shape, operation, operands, names, rest, bool(root)))
    return Module(computations, entry)


def executed(module: Module, computation: str = "", times: float = 1) -> Iterator[tuple[Instruction, float]]:
    """Every instruction that the program runs, and how often; what is fused stays inside its fusion.

    A loop of unknown length counts once, and of the branches of a conditional each as if all were equally likely.
    """
    for instruction in module.computations[computation or module.entry]:
        if instruction.operation == "while":
            yield from executed(module, _called(instruction), times * (module.turns(instruction) or 1))
        elif instruction.operation == "call":
            yield from executed(module, _called(instruction), times)
        elif instruction.operation == "conditional":
            branches = _branches(instruction)
            for branch in branches:
                yield from executed(module, branch, times / len(branches))
        else:
            yield instruction, times


def unknown_loops(module: Module) -> int:
    """Loops whose length nothing says."""
    loops = (line for lines in module.computations.values() for line in lines if line.operation == "while")
    return sum(module.turns(loop) is None for loop in loops)


def _called(instruction: Instruction) -> str:
    found = CALLED.search(instruction.rest)
    assert found, instruction
    return found[1]


def _branches(instruction: Instruction) -> list[str]:
    found = BRANCHES.search(instruction.rest)
    assert found, instruction
    return re.findall(r"[\w.\-]+", found[1].replace("%", "")) if found[1] else [found[2], found[3]]


@functools.cache
def size(shape: str, main_memory: bool = False) -> int:
    """Bytes of a shape, tuples included; `main_memory` leaves out what XLA keeps in a memory space of its own, such as
    the fast memory of a TPU's core, written S(1) in the layout."""
    arrays = ARRAY.findall(shape)
    return sum(
        ITEM.get(dtype, 0) * math.prod(_numbers(dims)) for dtype, dims, layout in arrays
        if not (main_memory and re.search(r"S\([1-9]", layout))
    )  # fmt: skip


def dims(shape: str) -> tuple[int, ...]:
    """The dimensions of the first array of a shape."""
    found = ARRAY.search(shape)
    return _numbers(found[2]) if found else ()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
