"""The options of a command that say where its runs are processes."""

import argparse
import inspect
import re
from typing import Any

from jaxdistill.errors import InputError
from jaxdistill.launchers.launcher import Launcher
from jaxdistill.launchers.local import Local
from jaxdistill.launchers.ray import Ray
from jaxdistill.launchers.slurm import Slurm

LAUNCHERS = {"local": Local, "ray": Ray, "slurm": Slurm}
LEAST = {"processes": 1, "cpus_per_run": 1, "gpus_per_run": 0}


def add(parser: argparse.ArgumentParser) -> None:
    """Add --launcher and what each launcher takes; `chosen` reads them."""

    def option(flag: str, argument: str, text: str, among=parser, **more) -> None:
        among.add_argument(flag, dest=argument, help=text, **more)

    parser.add_argument(
        "--launcher", choices=LAUNCHERS, default="local", help="where runs are processes (default: local)"
    )
    option(
        "--processes", "processes", "runs at a time (default: one a GPU or core; of a cluster, all that fit)", type=int
    )
    cluster = parser.add_argument_group("on a cluster, --launcher ray or slurm")
    option(
        "--cpus-per-run", "cpus_per_run", "cores that a run holds (default: 1; slurm: the queue's)", cluster, type=int
    )
    text = "GPUs that a run holds (default: ray: 1 where the cluster has any; slurm: none)"
    option("--gpus-per-run", "gpus_per_run", text, cluster, type=int)
    text = "of a Ray cluster: auto, or host:port (default: start one here, for this sweep)"
    option("--address", "address", text, cluster)
    text = "others that Ray gives a run, such as TPU=4; repeat for more"
    option("--resource", "resources", text, cluster, metavar="NAME=N", action="append")
    option("--slurm-partition", "partition", "of the queue (default: the queue's)", cluster, metavar="NAME")
    text = "minutes or h:mm:ss of a job (default: 60); longer runs go on in another job"
    option("--slurm-time", "minutes", text, cluster, metavar="TIME")
    text = "of sbatch, such as account=me; repeat for more"
    option("--slurm-option", "options", text, cluster, metavar="NAME=VALUE", action="append")


FLAGS = {
    "resources": "--resource",
    "partition": "--slurm-partition",
    "minutes": "--slurm-time",
    "options": "--slurm-option",
}


def chosen(options: argparse.Namespace) -> Launcher:
    """The launcher that the options describe; InputError where they do not fit it or each other."""
    kind = LAUNCHERS[options.launcher]
    arguments = {argument for each in LAUNCHERS.values() for argument in inspect.signature(each).parameters}
    given = {name: getattr(options, name, None) for name in sorted(arguments)}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        flag = FLAGS.get(name, "--" + name.replace("_", "-"))
        if name not in inspect.signature(kind).parameters:
            raise InputError(f"{flag} is not an option of --launcher {options.launcher}")
        if name in LEAST and value < LEAST[name]:
            raise InputError(f"{flag} {value} must be at least {LEAST[name]}")
        given[name] = READ[name](flag, value) if name in READ else value
    return kind(**given)


def _pairs(flag: str, texts: list[str]) -> dict[str, str]:
    if wrong := [text for text in texts if not all(text.partition("="))]:
        raise InputError(f"{flag} {wrong[0]} is not a name and a value: write it as name=value")
    return dict(text.split("=", 1) for text in texts)


def _numbers(flag: str, texts: list[str]) -> dict[str, float]:
    pairs = _pairs(flag, texts)
    try:
        return {name: float(value) for name, value in pairs.items()}
    except ValueError:
        raise InputError(f"{flag} {' '.join(texts)} must say how many, such as TPU=4") from None


def _minutes(flag: str, text: str) -> int:
    """A duration as SLURM writes it: 90 (minutes), 1:30:00 or 2-12:00:00."""
    found = re.fullmatch(r"(?P<minutes>\d+)|(?:(?P<d>\d+)-)?(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)", text)
    if found is None:
        raise InputError(f"{flag} {text} is no duration: write minutes or h:mm:ss, such as 90 or 1:30:00")
    if found["minutes"]:
        return int(found["minutes"])
    return int(found["d"] or 0) * 1440 + int(found["h"]) * 60 + int(found["m"]) + (int(found["s"]) > 0)


READ: dict[str, Any] = {"resources": _numbers, "options": _pairs, "minutes": _minutes}
