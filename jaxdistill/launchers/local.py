"""Runs as processes of this machine."""

import glob
import os
import subprocess
from pathlib import Path
from typing import Self

from jaxdistill.launchers import process


class Local:
    """Processes of this machine, each with its share of the cores or with a GPU of its own.

    Args:
      processes: how many at a time; None takes one a GPU, or one a core where there is none.
    """

    verb = "started"

    def __init__(self, processes: int | None = None):
        gpus = sorted(glob.glob("/dev/nvidia[0-9]*"))
        other = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        default = len(gpus) or (1 if other else len(cores) or os.cpu_count() or 1)
        self.slots = processes or default
        self._cpu_only = not gpus and not other
        self._gpus, self._cores = gpus, cores
        self._running: dict[int, tuple[Path, subprocess.Popen]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        process.end(running for _, running in self._running.values())

    def free(self) -> bool:
        return len(self._running) < self.slots

    def start(self, directory: Path) -> None:
        slot = min(set(range(self.slots)) - self._running.keys())
        one_gpu = {"CUDA_VISIBLE_DEVICES": str(slot % len(self._gpus))} if self._gpus and self.slots > 1 else {}
        started = process.begin(directory, one_gpu)
        if self._cpu_only and len(self._cores) >= self.slots > 1:
            os.sched_setaffinity(started.pid, self._cores[slot :: self.slots])
        self._running[slot] = (directory, started)

    def finished(self) -> list[tuple[Path, int | None]]:
        ended = [slot for slot, (_, running) in self._running.items() if running.poll() is not None]
        return [(directory, running.returncode) for directory, running in map(self._running.pop, ended)]
