"""Sweeps as SLURM jobs, on the SLURM of one_node_slurm.py."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from jaxdistill import rundir, sweep
from jaxdistill.errors import InputError
from jaxdistill.launchers import Slurm

pytest.importorskip("submitit")


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """The directory of its state, with the scripts that were submitted."""
    state, programs = tmp_path / "queue", tmp_path / "bin"
    source = (pathlib.Path(__file__).parent / "one_node_slurm.py").read_text()
    for directory in (state, programs):
        directory.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel"):
        (programs / name).write_text(f"#!{sys.executable}\n{source}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("ONE_NODE_SLURM", str(state))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return state


@pytest.mark.slow
def test_one_run_in_three_jobs_of_three_sweeps(queue, sweeping):
    """SIGTERM of the sweep cancels its job, whose run saves. kill -9 leaves the next job running, and the same command
    takes it over. A job that is warned of its end lets its run save, and another goes on."""
    options = ["--launcher", "slurm", "--cpus-per-run", 1, "--slurm-time", "1:30:00", "--slurm-option", "account=me"]
    one = sweeping('{"teacher": supervised()}', ["steps=6000", "checkpoint_every=0"], options)
    saved = "the same command continues from there"

    one.start()
    assert one.end(signal.SIGTERM).splitlines()[-1] == "jaxdistill: stopped; the same command continues"
    with rundir.lock(one.out / "teacher"):
        assert one.log("teacher").count(saved) == 1

    one.start()
    one.end(signal.SIGKILL)
    one.start()
    one.hear("queued teacher")
    assert [path.stem for path in sorted(queue.glob("*.sh"))] == ["1", "2"]

    subprocess.run(["scancel", "--signal=USR2", "2"], check=True)
    assert one.end().count("queued teacher again") == 1
    assert one.log("teacher").count(saved) == 2 and "job 2 is gone" in one.log("teacher")
    assert rundir.is_finished(one.out / "teacher")
    script = (queue / "3.sh").read_text()
    assert all(f"#SBATCH --{line}\n" in script for line in ("time=90", "cpus-per-task=1", "account=me", "no-requeue"))


def test_what_slurm_refuses_is_one_sentence(tmp_path, supervised, queue):
    with pytest.raises(InputError, match=r"SLURM does not take the job of .*teacher.*: .*invalid partition"):
        sweep.sweep({"teacher": supervised}, tmp_path / "out", launcher=Slurm(partition="nowhere"), quiet=True)
