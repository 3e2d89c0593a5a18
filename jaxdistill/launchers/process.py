"""A run as a process on a leash: it saves and stops when whoever started it ends, however that comes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

LEASH = "JAXDISTILL_LEASH"
"""Set for runs that a sweep has started: their standard input ends when the process that started them does."""

LOG = "log.txt"


def begin(directory: Path, environment: dict[str, str], folder: Path | None = None) -> subprocess.Popen:
    """Start or continue the run of a directory; it prints to log.txt.

    Args:
      directory: of the run.
      environment: variables on top of this process's.
      folder: to be in, for data at relative paths; default this process's.
    """
    defaults = {
        "JAX_TRACEBACK_FILTERING": "off",  # whole traces in log.txt
        # A step's buffers are new memory every time, and on CPUs small pages of it cost as much as the arithmetic.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    with open(directory / LOG, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jaxdistill", "run", str(directory), "--quiet"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=defaults | os.environ | environment | {LEASH: "1"},
            start_new_session=True,
        )


def end(processes: Iterable[subprocess.Popen]) -> None:
    """Ask runs to save and stop, and wait until they have."""
    processes = list(processes)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def run(directory: Path, environment: dict[str, str], folder: Path) -> int:
    """The run of a directory to its end, for a worker of a cluster; gives its exit status. `begin` has the arguments.

    An exception that reaches the worker, which is how clusters cancel, ends the run before it goes on.
    """
    process = begin(directory, environment, folder if folder.is_dir() else None)
    try:
        while process.poll() is None:
            time.sleep(0.1)  # and not wait(): exceptions from other threads come between two lines of Python
    finally:
        end([process])
    return process.returncode


def note(directory: Path, line: str) -> None:
    """Add to what a run has printed."""
    with open(directory / LOG, "a") as log:
        print(line, file=log)


def last_line(directory: Path) -> str:
    """The last line that a run has printed."""
    log = directory / LOG
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it printed nothing"


def follow() -> bool:
    """In a run on a leash: watch for its end and stop with it. Gives whether this is such a run."""

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)  # nothing is ever written: this returns when the other end is gone
        os.kill(os.getpid(), signal.SIGTERM)

    if LEASH in os.environ:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a queue warns all of a job, whose first process answers
        threading.Thread(target=watch, daemon=True).start()
    return LEASH in os.environ
