"""SLURM of one node, for tests: sbatch, srun, squeue or scancel, by the name it is run as. Its state is a directory.

Jobs begin at once. scancel reaches every process of a job's steps, as it does in SLURM.
"""

import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys

STATE = pathlib.Path(os.environ["ONE_NODE_SLURM"])


def sbatch(arguments):
    script = pathlib.Path(arguments[-1])
    if "--partition=nowhere" in script.read_text():
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = len(list(STATE.glob("*.sh"))) + 1
    (STATE / f"{number}.sh").write_bytes(script.read_bytes())
    facts = {"JOB_ID": number, "NTASKS": 1, "JOB_NUM_NODES": 1, "NODEID": 0, "PROCID": 0, "LOCALID": 0}
    environment = os.environ | {f"SLURM_{name}": str(value) for name, value in facts.items()}
    job = subprocess.Popen(
        ["bash", script], env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    (STATE / f"{number}.pid").write_text(str(job.pid))
    print(f"Submitted batch job {number}")


def srun(arguments):
    command = next(i for i, argument in enumerate(arguments) if argument == sys.executable)
    given = dict(itertools.pairwise(arguments[:command]))
    number = os.environ["SLURM_JOB_ID"]
    for stream, option in ((1, "--output"), (2, "--error")):
        path = given[option].replace("%j", number).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.execv(sys.executable, arguments[command:])


def squeue(arguments):
    for path in STATE.glob("*.pid"):
        if family(int(path.read_text())):
            print(path.stem)


def scancel(arguments):
    number = getattr(signal, f"SIG{arguments[0].removeprefix('--signal=')}") if len(arguments) > 1 else signal.SIGTERM
    script = int((STATE / f"{arguments[-1]}.pid").read_text())
    for process in family(script) - {script}:
        os.kill(process, number)


def family(root):
    """The processes of a job: the first and its descendants, those that are still there."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = re.search(r"\) (\S) (\d+)", stat.read_text()).groups()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found = {root} & parents.keys()
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


if __name__ == "__main__":
    {f.__name__: f for f in (sbatch, srun, squeue, scancel)}[pathlib.Path(sys.argv[0]).name](sys.argv[1:])
