"""Runs as jobs of a SLURM queue, through submitit."""

import importlib.util
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from jaxdistill.errors import InputError
from jaxdistill.launchers import process
from jaxdistill.launchers.launcher import LOST

FOLDER = "slurm"
"""In a run directory: what submitit writes, and the number of the last job."""


class Job:
    """What a job does: one run, until it ends or the job does."""

    def __init__(self, directory: Path):
        self._directory = directory

    def __call__(self) -> int:
        return process.run(self._directory, {}, Path.cwd())

    def checkpoint(self) -> None:
        """Asked for before a job's time is up: nothing to submit again, which is the sweep's to decide."""


class Slurm:
    """Jobs of a queue whose machines share the sweep's directory and its Python.

    A job that is still queued or running when the sweep has been killed is found again by the next one. One whose time
    is up saves, and is continued by another job.

    Args:
      processes: jobs in the queue at a time; None submits what can run at once.
      cpus_per_run: cores that a run holds; None takes the queue's default.
      gpus_per_run: GPUs that a run holds; None takes none.
      partition: None takes the queue's default.
      minutes: that a job may take.
      options: further ones of sbatch by their long names, such as {"account": "me"}.

    Raises:
      InputError: submitit is not installed, or there is no SLURM here.
    """

    verb = "queued"

    def __init__(
        self,
        processes: int | None = None,
        cpus_per_run: int | None = None,
        gpus_per_run: int | None = None,
        partition: str | None = None,
        minutes: int = 60,
        options: Mapping[str, str] | None = None,
    ):
        if importlib.util.find_spec("submitit") is None:
            raise InputError("a sweep on SLURM needs submitit: pip install 'jaxdistill[slurm]'")
        if shutil.which("sbatch") is None:
            raise InputError("there is no SLURM on this machine: sweep from one that has sbatch")
        resources = {"cpus_per_task": cpus_per_run, "gpus_per_node": gpus_per_run, "slurm_partition": partition}
        self._parameters: dict[str, Any] = {name: x for name, x in resources.items() if x is not None}
        # Without "no_requeue" SLURM would start again what the sweep starts again.
        self._parameters |= {
            "timeout_min": minutes,
            "slurm_additional_parameters": {"no_requeue": True} | dict(options or {}),
        }
        if cpus_per_run is not None:
            self._parameters["slurm_srun_args"] = [f"--cpus-per-task={cpus_per_run}"]  # srun does not inherit it
        self._processes = processes
        self._running: dict[Path, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        for job in self._running.values():
            job.cancel(check=False)
        give_up = time.monotonic() + 60
        while not all(job.done(force_check=True) for job in self._running.values()) and time.monotonic() < give_up:
            time.sleep(1)

    def free(self) -> bool:
        return self._processes is None or len(self._running) < self._processes

    def start(self, directory: Path) -> None:
        folder = directory.absolute() / FOLDER
        self._running[directory] = self._found(folder) or self._submit(directory, folder)

    def _found(self, folder: Path) -> Any | None:
        """The job of an earlier sweep, where the queue still has it."""
        from jaxdistill.launchers.queue import QueuedJob

        if not (folder / "job").exists():
            return None
        job = QueuedJob(folder, (folder / "job").read_text())
        return None if job.done(force_check=True) else job

    def _submit(self, directory: Path, folder: Path) -> Any:
        import submitit
        from submitit.core.utils import FailedJobError

        from jaxdistill.launchers.queue import QueuedJob

        executor = submitit.AutoExecutor(folder, cluster="slurm")
        executor.update_parameters(name=f"jaxdistill-{directory.name}", **self._parameters)
        try:
            number = executor.submit(Job(directory.absolute())).job_id
        except FailedJobError as error:
            said = "; ".join(str(error).splitlines())
            raise InputError(f"SLURM does not take the job of {directory}: {said}") from error
        (folder / "job").write_text(number)
        return QueuedJob(folder, number)

    def finished(self) -> list[tuple[Path, int | None]]:
        ended = [directory for directory, job in self._running.items() if job.done()]
        return [(directory, self._status(directory, self._running.pop(directory))) for directory in ended]

    def _status(self, directory: Path, job: Any) -> int | None:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return job.result()
        except (FailedJobError, UncompletedJobError):
            process.note(directory, f"job {job.job_id} is gone; what it said is in {job.paths.stderr}")
            return LOST
