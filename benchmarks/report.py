"""What benchmarks share: fresh processes, a progress bar, and the answer as a dated page under results/."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table as Grid

RESULTS = pathlib.Path(__file__).parent / "results"


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """function(*arguments) in a process of its own, so that nothing of an earlier measurement is there."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def progress(cases: Sequence[Any], what: str) -> Iterable[Any]:
    """The cases, with a bar on the standard error."""
    return track(cases, what, console=Console(stderr=True))


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and the rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([f"## {self.title}", "", *("| " + " | ".join(map(str, line)) + " |" for line in lines)])

    def grid(self) -> Grid:
        grid = Grid(*map(str, self.columns), title=self.title)
        for row in self.rows:
            grid.add_row(*map(str, row))
        return grid


def hardware() -> str:
    """The devices, and the processor beneath them."""
    import jax  # here, so that a benchmark can time the import

    devices = sorted({f"{device.platform} {device.device_kind}" for device in jax.devices()})
    info = pathlib.Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    cores = len(os.sched_getaffinity(0))
    return (
        f"{len(jax.devices())} x {', '.join(devices)}; {cores} cores of {models[0] if models else platform.machine()}"
    )


def write(name: str, notes: str, tables: Sequence[Table]) -> None:
    """Print the tables and put them into results/<name>.md, with date, hardware, versions and command."""
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("jaxdistill", "jax", "jaxlib"))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    head = [
        f"# {name}",
        "",
        f"- date: {time.strftime('%Y-%m-%d')}",
        f"- command: `python {' '.join(sys.argv)}`",
        f"- hardware: {hardware()}; load average at the end {load}",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- {notes}",
    ]
    RESULTS.mkdir(exist_ok=True)
    page = RESULTS / f"{name}.md"
    partial = page.with_name(f".{page.name}.partial")
    partial.write_text("\n".join(head) + "\n\n" + "\n\n".join(table.markdown() for table in tables) + "\n")
    os.replace(partial, page)
    console = Console(width=None if sys.stdout.isatty() else 400)  # in a file, as wide as the table wants to be
    for table in tables:
        console.print(table.grid())
    print(f"written to {page}")
