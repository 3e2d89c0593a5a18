"""Real processes on this machine, one CPU device each: they train, are stopped or die, and go on as one process."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxdistill
from jaxdistill import caching, checkpoint, metrics, rundir

FILE = pathlib.Path(__file__).parent / "several.py"
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiled in half the time
ROUNDING = 1e-5  # sums over the tokens in another order differ by some 1e-7; 40 steps of Adam make a little more of it
LIMIT = 600  # seconds that no job here ever needs


def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Job:
    """The processes of a run. Several are told of each other as SLURM tells its tasks, or else by `flags`."""

    def __init__(self, number, *arguments, flags=False, each=(), pace=0.0):
        """`arguments` are of jaxdistill run, to all; `each` has one more for every process."""
        address, job_id, self.processes = f"127.0.0.1:{port()}", str(os.getpid()), []
        for process in range(number):
            command = [sys.executable, "-m", "jaxdistill", "run", FILE, *each[process : process + 1], *arguments]
            task = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(number), "SLURM_JOB_ID": job_id}
            task |= {"SLURM_PROCID": str(process), "SLURM_LOCALID": str(process)}
            if flags:
                command += ["--coordinator", address, "--processes", number, "--process", process]
            environment = {**os.environ, **QUICK, **({} if flags or number == 1 else task), "PACE": str(pace)}
            self.processes.append(
                subprocess.Popen(list(map(str, command)), env=environment, text=True, stderr=subprocess.PIPE)
            )

    def reach(self, directory, step):
        """Wait until so many steps of a run are logged."""
        log, give_up = directory / rundir.METRICS, time.monotonic() + LIMIT
        while not log.exists() or max((row["step"] for row in metrics.read(log)), default=0) < step:
            assert all(process.poll() is None for process in self.processes), self.end()
            assert time.monotonic() < give_up
            time.sleep(0.05)

    def end(self):
        """The exit status and the last words of every process."""
        words = [process.communicate(timeout=LIMIT)[1].strip().splitlines()[-1:] for process in self.processes]
        return [(process.returncode, *last) for process, last in zip(self.processes, words, strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A student and its teacher as one process, undisturbed: what all others are held against."""
    root = tmp_path_factory.mktemp("alone")
    assert Job(1, "--out", root / "online", "--quiet").end() == [(0,)]
    return root


def assert_same_run(directory, undisturbed):
    rows, wanted = (metrics.read(run / rundir.METRICS) for run in (directory, undisturbed))
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, right in zip(rows, wanted, strict=True):
        names = sorted(right.keys() - {"tokens_per_second"})
        np.testing.assert_allclose([row[n] for n in names], [right[n] for n in names], rtol=ROUNDING, err_msg=str(row))
    assert rundir.read_result(directory)["loss"] == pytest.approx(rundir.read_result(undisturbed)["loss"], rel=ROUNDING)
    params = [jax.tree.leaves(jaxdistill.load_run(run).params) for run in (directory, undisturbed)]
    for own, other in zip(*params, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=ROUNDING)


def test_two_go_on_where_one_was_stop_by_one_signal_and_one_goes_on(alone, tmp_path):
    out = tmp_path / "online"
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    (out / rundir.RESULT).unlink()
    shutil.rmtree(out / "checkpoints" / "40")
    began = (out / rundir.METRICS).read_text().splitlines()[:20]
    (out / rundir.METRICS).write_text("\n".join(began) + "\n")
    job = Job(2, "--out", out, "--quiet", flags=True, pace=0.3)
    job.reach(out, 24)
    job.processes[1].send_signal(signal.SIGTERM)
    ended = job.end()
    last = checkpoint.steps(out / "checkpoints")[-1]
    assert 24 <= last < 40
    words = f"jaxdistill: stopped at step {last} of 40; the same command continues from there"
    assert ended == [(128 + signal.SIGTERM, words)] * 2
    assert rundir.read_json(out / "env.json")["processes"] == 2
    assert Job(1, "--out", out, "--quiet").end() == [(0,)]
    assert_same_run(out, alone / "online")


def test_what_one_cannot_do_ends_both_with_its_sentence(tmp_path):
    """Also: SLURM's tasks find each other."""
    out, seeds = tmp_path / "run", ("seed=0", "seed=1")
    ended = Job(2, "--out", out, "--quiet", each=seeds).end()
    words = f"jaxdistill: {out}-teacher holds another experiment (seed is 0 there and 1 here)"
    assert [(status, said.partition(";")[0]) for status, said in ended] == [(2, words)] * 2
    assert not (tmp_path / "run").exists()


WAITING = """
import sys
from jaxdistill.parallel import hosts, together
from jaxdistill.parallel.places import Place
with hosts.job(Place(sys.argv[1], 2, int(sys.argv[2])), lambda error: None):
    together.once(lambda: print("here", flush=True) or sys.stdin.read())
"""


def test_who_is_killed_is_missed():
    address = f"127.0.0.1:{port()}"
    first, other = (
        subprocess.Popen(
            [sys.executable, "-c", WAITING, address, str(process)], text=True, env=os.environ | QUICK,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) for process in range(2)
    )  # fmt: skip
    assert first.stdout.readline() == "here\n"
    first.kill()
    complaint = other.communicate(timeout=LIMIT)[1]
    words = "jaxdistill: process 1 of 2 stops, because another one has died or cannot be reached any more; "
    assert words + "the same command continues from the last checkpoint\n" in complaint
    assert other.returncode == 1
    first.communicate()


@pytest.mark.slow
def test_four_train_stop_by_one_signal_go_on_and_end_when_the_last_is_killed(alone, tmp_path):
    """They train the teacher and build its cache, too; one process makes the same of each."""
    out, held = tmp_path / "several" / "cached", tmp_path / "alone" / "cached"
    command = ("--preset", "cached", "--quiet", "--out")
    job = Job(4, *command, out, pace=0.3)
    job.reach(out, 22)
    job.processes[3].send_signal(signal.SIGTERM)
    assert [status for status, _ in job.end()] == [128 + signal.SIGTERM] * 4
    job = Job(4, *command, out, pace=0.3)
    job.reach(out, 30)
    job.processes[3].kill()
    for status, words in job.end()[:3]:
        assert status == 1
        assert words.startswith("jaxdistill: process")
        assert words.endswith("the same command continues from the last checkpoint")
    assert Job(1, *command, out).end() == [(0,)]
    assert_same_run(out.parent / "cached-cache-teacher", alone / "online-teacher")
    assert caching.verify(out.parent / "cached-cache", quiet=True)["overlap"] > 0.9999  # as in test_equal_losses
    # The student on the same cache: another one's draws are of a teacher whose last bits are others.
    shutil.copytree(out.parent, held.parent, ignore=lambda folder, names: {out.name} & {*names})
    assert Job(1, *command, held).end() == [(0,)]
    assert_same_run(out, held)
