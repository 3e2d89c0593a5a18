"""Progress of long work, on standard error, and only where a person is watching."""

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import rich.console
import rich.progress

T = TypeVar("T")


def track(items: Iterable[T], what: str, quiet: bool) -> Iterable[T]:
    """The same items, with a bar that counts them; their number need not be known."""
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.completed:,.0f} documents"),
        rich.progress.TimeElapsedColumn(),
    )
    bar = rich.progress.Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
    with bar:
        yield from bar.track(items, description=what)


@contextlib.contextmanager
def counting(what: str, total: int, unit: str, quiet: bool) -> Generator[Callable[[int], object]]:
    """A bar, and the function that moves it on by a number of units."""
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def status(what: str, quiet: bool) -> contextlib.AbstractContextManager[object]:
    """A line that says what is going on, for work that cannot count its steps."""
    console = rich.console.Console(stderr=True)
    return contextlib.nullcontext() if quiet or not console.is_terminal else console.status(what)
