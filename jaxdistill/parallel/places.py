"""Places: where a process stands among those of its job, by what was said to it or by what the cluster says."""

import glob
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from jaxdistill.errors import InputError

VARIABLES = {name: f"JAXDISTILL_{name.upper()}" for name in ("coordinator", "processes", "process")}


class Place(NamedTuple):
    """HOST:PORT of process 0, how many processes there are, and which one this is.

    All are None where JAX is to find them in what the cluster tells its processes.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def find(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """The place of this process by the command line, else by JAXDISTILL_*, else by the cluster; None if it is alone.

    One process of one is alone, whatever the cluster says. Raises InputError where the three do not fit together.
    """
    arguments = {"coordinator": coordinator, "processes": processes, "process": process}
    given = {
        name: environment.get(VARIABLES[name], "") if argument is None else str(argument)
        for name, argument in arguments.items()
    }
    if given["processes"] == "1" and given["process"] in ("", "0"):
        return None
    missing = [f"--{name}" for name, text in given.items() if not text]
    if len(missing) == len(given):
        return Place() if cluster(environment) else None
    if missing:
        raise InputError(
            f"{' and '.join(missing)} not given: several processes need --coordinator HOST:PORT of the first, "
            "--processes N and --process I, or none of them where a cluster tells JAX"
        )
    for name in ("processes", "process"):
        if not given[name].isdigit():
            raise InputError(f"--{name} {given[name]} is not a whole number")
    number, own = int(given["processes"]), int(given["process"])
    if own >= number:
        raise InputError(f"--process {own} of --processes {number}: they are counted from 0, so it must be below that")
    if not re.fullmatch(r"\S+:\d+", given["coordinator"]):
        raise InputError(f"--coordinator {given['coordinator']} is not HOST:PORT, such as 10.0.0.1:8476")
    return Place(given["coordinator"], number, own)


def cluster(environment: Mapping[str, str] = os.environ) -> str | None:
    """What started this process as one of several, where JAX can ask it for the others; None where nothing did.

    Steps of SLURM, Open MPI, indexed jobs of Kubernetes (where its Python package is installed), and TPU VMs, of which
    only JAX can tell how many there are.
    """
    has = environment.__contains__
    if has("SLURM_STEP_NODELIST") and has("SLURM_PROCID") and int(environment.get("SLURM_NTASKS", 1)) > 1:
        return "SLURM"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if has("KUBERNETES_SERVICE_HOST") and has("JOB_COMPLETION_INDEX") and importlib.util.find_spec("kubernetes"):
        return "Kubernetes"
    if (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")) and importlib.util.find_spec("libtpu"):
        return "TPU"
    return None


def refuse(verb: str, environment: Mapping[str, str] = os.environ) -> None:
    """InputError where several processes were started for a command that is work for one."""
    if (place := find(environment=environment)) is None:
        return
    by = cluster(environment) if place == Place() else VARIABLES["processes"]
    if by != "TPU":
        raise InputError(
            f"{by} has started several processes, and jaxdistill {verb} is work for one: start it once, "
            f"or with {VARIABLES['processes']}=1"
        )
