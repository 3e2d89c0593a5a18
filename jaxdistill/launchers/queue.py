"""Jobs of SLURM as submitit has them, watched with squeue."""

import getpass

from submitit.core.core import InfoWatcher
from submitit.slurm.slurm import SlurmJob


class Queue(InfoWatcher):
    """What the queue holds now; a job that is not in it is over.

    submitit asks sacct, which needs a database of past jobs that many clusters do not have.
    """

    def _make_command(self) -> list[str]:
        return ["squeue", "--noheader", "--format=%i", f"--user={getpass.getuser()}"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        queued = (string if isinstance(string, str) else string.decode()).split()
        return {job: {"State": "RUNNING" if job in queued else "GONE"} for job in self._registered}

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        return self.get_info(job_id, mode).get("State", "UNKNOWN")


class QueuedJob(SlurmJob):
    """A job by its number, whichever process has submitted it."""

    watcher = Queue(delay_s=15)
