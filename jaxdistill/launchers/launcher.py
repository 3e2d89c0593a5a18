"""What a sweep asks of whoever starts its runs."""

from pathlib import Path
from typing import Protocol, Self

LOST = None
"""In place of an exit status: the machine, not the run, has failed."""


class Launcher(Protocol):
    """Starts the runs of a sweep as processes somewhere.

    It is entered before the first run starts. When it is left, every run that is still going is asked to save and
    stop, and has stopped.

    Attributes:
      verb: what `start` does to a run: "started", or "queued" where it may have to wait for a machine.
    """

    verb: str

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception) -> None: ...

    def free(self) -> bool:
        """Whether another run may be started now."""
        ...

    def start(self, directory: Path) -> None:
        """Start or continue the run of a directory; InputError where the cluster will not have it."""
        ...

    def finished(self) -> list[tuple[Path, int | None]]:
        """Directories whose run has ended since the last call, with its exit status or `LOST`."""
        ...
