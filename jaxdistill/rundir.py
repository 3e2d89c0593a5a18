"""A run directory: what a run leaves on disk, and the rules that keep it whole.

config.txt       the resolved configuration; its digest is the run's identity
experiment.py    the experiment file as it was run
env.json         versions, devices, git commit of every start
tokenizer/       the tokenizer the run was trained with
metrics.jsonl    a line a logged step; also tensorboard/
checkpoints/     Orbax
trained/         the checkpoints of a run that trains a part of its model; the whole is in checkpoints/ at its end
result.json      written last and atomically: its presence means finished
"""

import contextlib
import fcntl
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Generator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxdistill import config as configs
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.parallel import together

CONFIG, RESULT, METRICS, EXPERIMENT = "config.txt", "result.json", "metrics.jsonl", "experiment.py"
CHECKPOINTS, PARTS = "checkpoints", "trained"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process is killed."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")  # others may be writing the same
    with open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; InputError where it is not one."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run the same command again") from error


def read_config(directory: Path) -> Any:
    """The configuration of a run directory: an Experiment, or what else was made there. InputError where it is none."""
    directory = Path(directory)
    if not (directory / CONFIG).is_file():
        raise InputError(f"{directory} is not a run directory: it has no {CONFIG}")
    return configs.parse((directory / CONFIG).read_text(), lambda: load_module(directory / EXPERIMENT))


def is_finished(directory: Path) -> bool:
    """Whether a run has come to its end."""
    return (Path(directory) / RESULT).is_file()


def read_result(directory: Path) -> dict[str, Any]:
    """The result of a finished run; InputError where there is none."""
    if not is_finished(directory):
        raise InputError(f"{directory} is not the directory of a finished run: it has no {RESULT}")
    return read_json(Path(directory) / RESULT)


def prepare(directory: Path, experiment: Any, experiment_file: Path | None = None) -> None:
    """Make a run directory for an experiment, or find the one that is there to be the same experiment's.

    Raises InputError where it belongs to another one, naming the first difference, or holds other files.
    """
    directory = Path(directory)
    if (directory / CONFIG).is_file():
        stored = (directory / CONFIG).read_text()
        if stored != configs.text(experiment):
            path, there, here = configs.diff(read_config(directory), experiment)[0]
            raise InputError(
                f"{directory} holds another experiment ({path or 'experiment'} is {there} there and {here} here); "
                "choose another --out, or delete it"
            )
        return
    if directory.exists() and (
        not directory.is_dir() or {name for name in os.listdir(directory) if not name.startswith(".")} - {EXPERIMENT}
    ):
        raise InputError(f"{directory} exists and is not a run directory; choose another --out")
    directory.mkdir(parents=True, exist_ok=True)
    if experiment_file is not None:
        write_atomically(directory / EXPERIMENT, Path(experiment_file).read_bytes())
    write_atomically(directory / CONFIG, configs.text(experiment))


JOB = ".job"  # a word of the job at work: who does not read it there looks at another disk
SEEN_SECONDS = 60.0  # which a network file system may take to show what another host wrote


@contextlib.contextmanager
def claim(
    directory: Path, experiment: Any, experiment_file: Path | None = None, patience: float = 0.0
) -> Generator[None]:
    """`lock` and `prepare` a run directory, once for all processes of this job.

    Raises InputError where process 0 cannot, or another one does not see what it has prepared.
    """
    with contextlib.ExitStack() as held:

        def begin() -> str:
            held.enter_context(lock(directory, patience))
            prepare(directory, experiment, experiment_file)
            word = secrets.token_hex(8)
            if together.is_several():
                write_atomically(directory / JOB, word)
            return word

        word = together.once(begin)
        if not together.is_first():
            _check_shared(directory, word)
            prepare(directory, experiment)  # refuses what is not the same experiment here
        yield


def _check_shared(directory: Path, word: str) -> None:
    give_up = time.monotonic() + SEEN_SECONDS
    while not (directory / JOB).is_file() or (directory / JOB).read_text() != word:
        if time.monotonic() > give_up:
            raise InputError(
                f"process {jax.process_index()} does not see the {directory} of process 0: choose an --out on a disk "
                "that all processes share"
            )
        time.sleep(0.1)


@contextlib.contextmanager
def lock(directory: Path, patience: float = 0.0, name: str = ".lock") -> Generator[None]:
    """Hold a directory for this process. A killed process lets go by itself.

    Args:
      directory: made where it is not there.
      patience: seconds to wait for another process that is about to let go.
      name: of the lock, where several processes share a directory and each has its part.

    Raises:
      InputError: another process is at work there.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + patience
    with open(Path(directory) / name, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise InputError(f"another process is at work in {directory}; wait for it or stop it") from None
                time.sleep(0.1)
        yield


def environment() -> dict[str, Any]:
    """Versions, devices and commit, to be read by whoever wants to know how a number came about."""
    packages = ("jaxdistill", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "git": _commit(),
    }


def _commit() -> str | None:
    """The commit of the working directory, with "-dirty" where files differ from it; None where there is none.

    `git describe --dirty` would say the same and write the index, which another git may be about to do.
    """

    def ask(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", *arguments]
        git = subprocess.run(command, capture_output=True, text=True, check=False)
        return git.stdout.strip() if git.returncode == 0 else None

    if (commit := ask("describe", "--always")) is None:
        return None
    return commit + ("-dirty" if ask("status", "--porcelain", "--untracked-files=no") else "")
