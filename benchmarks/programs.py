"""Programs to time against each other: what one is, what it needs, and taking turns."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other frameworks want some of a GPU as well

import jax

from jaxdistill.parallel import costs


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to time.

    Attributes:
      call: returns its results once they are there.
      memory: bytes needed beyond what goes in and comes out.
      moved: bytes read and written, as far as the compiler's text tells; None where it is not known.
    """

    call: Callable[[], Any]
    memory: int
    moved: int | None = None


def compiled(function: Callable, *arguments: Any) -> Program:
    """A JAX function compiled for these arguments."""
    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis().temp_size_in_bytes
    return Program(lambda: jax.block_until_ready(program(*arguments)), memory, costs.moved(program.as_text()))


def free_bytes() -> int:
    """What the device, or this machine, can still give."""
    if stats := jax.devices()[0].memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def least_times(programs: Mapping[Any, Program], rounds: int) -> dict[Any, float]:
    """Seconds of the fastest of `rounds` calls of each program that fits; they take turns, since hosts are noisy."""
    runs = {name: program for name, program in programs.items() if program.memory < 0.8 * free_bytes()}
    times = {name: [] for name in runs}
    for program in runs.values():
        program.call()
    for _ in range(rounds):
        for name, program in runs.items():
            start = time.perf_counter()
            program.call()
            times[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}
