"""Metrics on their way to disk: a JSON line a logged step, and TensorBoard where tensorboardX is installed."""

import json
from pathlib import Path
from typing import Any


class Writer:
    """Appends rows to metrics.jsonl and scalars to tensorboard/.

    A run that continues drops the rows past the step it continues from: they are about to be written again, the same.
    """

    def __init__(self, directory: Path, filename: str, start: int):
        path = directory / filename
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= start]
        path.write_text("".join(line + "\n" for line in kept))
        self._file = open(path, "a")  # noqa: SIM115
        self._board = _tensorboard(directory / "tensorboard", start)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """One row; `step` counts the optimizer steps taken."""
        row = {"step": step} | {name: float(value) for name, value in row.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if self._board is not None and name != "step":
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class Silent:
    """The writer of a process whose rows another one writes."""

    def write(self, step: int, row: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def _lines(path: Path) -> list[str]:
    """The whole lines of a file; a last line that a kill cut short is not one."""
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")] and text.split("\n")[:-1]


def _tensorboard(directory: Path, start: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=start + 1 if start else None, flush_secs=10)


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl; one that is being written, or was cut short, gives its whole rows."""
    return [json.loads(line) for line in _lines(path)]
