"""Runs as processes inside the tasks of a Ray cluster.

Ray finds machines and notices when they die; that is all it is asked for. A task holds the resources of its run and
waits for it; the run is a process of its own, so that no JAX state of a worker reaches the next one. Ray does not retry
tasks: the sweep decides what is started again, for all launchers alike.
"""

import importlib.util
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from jaxdistill.errors import InputError
from jaxdistill.launchers import process
from jaxdistill.launchers.launcher import LOST

CARRIED = ("JAX", "XLA_", "LIBTPU_", "PYTHONPATH")
"""Variables of the sweep that its runs have too, by how they begin; the rest is their machine's."""

PATIENCE = {"RAY_raylet_start_wait_time_s": "120", "RAY_agent_register_timeout_ms": "120000"}
DEFAULTS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"} | PATIENCE
"""For Ray itself: its makers are told nothing; runs on a cluster of the sweep's own are not niced to 15; busy machines
have time to start one."""


class Ray:
    """Tasks of a Ray cluster whose machines share the sweep's directory and have jaxdistill installed.

    Args:
      address: of a cluster that is there: "auto", or host:port. None takes the one of RAY_ADDRESS, as inside a Ray job,
        or else starts one on this machine for as long as the sweep takes.
      processes: runs at a time; None leaves it to the cluster.
      cpus_per_run: cores that a run holds.
      gpus_per_run: GPUs that a run holds and sees; None takes one where the cluster has any.
      resources: others that it holds, such as {"TPU": 4}.

    Raises:
      InputError: Ray is not installed, or there is no cluster at the address.
    """

    verb = "queued"

    def __init__(
        self,
        address: str | None = None,
        processes: int | None = None,
        cpus_per_run: int = 1,
        gpus_per_run: int | None = None,
        resources: Mapping[str, float] | None = None,
    ):
        if importlib.util.find_spec("ray") is None:
            raise InputError("a sweep on Ray needs it installed: pip install 'jaxdistill[ray]'")
        self._address, self._processes = address, processes
        self._cpus, self._gpus, self._resources = cpus_per_run, gpus_per_run, dict(resources or {})
        self._ray: Any = None  # imported when it is needed: that takes a second
        self._running: dict[Any, Path] = {}

    def __enter__(self) -> Self:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._ray = ray = importlib.import_module("ray")
        self._joined = ray.is_initialized()
        if not self._joined:
            self._connect(self._address or os.environ.get("RAY_ADDRESS") or "local")
        if self._gpus is None:
            self._gpus = int(ray.cluster_resources().get("GPU", 0) >= 1)
        holds = {"num_cpus": self._cpus, "num_gpus": self._gpus, "resources": self._resources}
        self._run = ray.remote(process.run).options(max_retries=0, **holds)
        return self

    def _connect(self, address: str) -> None:
        # What crosses Ray is a path and a number: it needs no memory for objects, and nobody looks at a dashboard.
        own = {"include_dashboard": False, "object_store_memory": 100 * 2**20} if address == "local" else {}
        host, _, port = address.rpartition(":")
        try:
            if host and port.isdigit():
                socket.create_connection((host, int(port)), timeout=10).close()  # Ray would try for minutes
            self._ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        except Exception as error:  # Ray raises of all kinds here, the bare one too
            what = "start one with ray start --head, or leave out --address"
            if own:
                what = "its own words are in /tmp/ray/session_latest/logs"
            raise InputError(f"cannot join the Ray cluster {address} ({_first_line(error)}); {what}") from error
        if own and (lacking := self._lacking()):
            self._ray.shutdown()
            raise InputError(f"a run of this sweep needs {lacking}")

    def _lacking(self) -> str:
        """What a run holds and the whole cluster has not; nothing would ever start then."""
        needs = {"CPU": self._cpus, "GPU": self._gpus or 0} | self._resources
        there = self._ray.cluster_resources()
        short = {name: number for name, number in needs.items() if number > there.get(name, 0)}
        return ", ".join(f"{x:g} {name}, of which the cluster has {there.get(name, 0):g}" for name, x in short.items())

    def __exit__(self, *exception) -> None:
        for task in self._running:
            self._ray.cancel(task)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running))
        if not self._joined:
            self._ray.shutdown()

    def free(self) -> bool:
        return self._processes is None or len(self._running) < self._processes

    def start(self, directory: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        self._running[self._run.remote(directory.absolute(), environment, Path.cwd())] = directory

    def finished(self) -> list[tuple[Path, int | None]]:
        if not self._running:
            return []
        ended, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [(self._running[task], self._status(task, self._running.pop(task))) for task in ended]

    def _status(self, task: Any, directory: Path) -> int | None:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # the machine is there and cannot start a run
            process.note(directory, _last_line(error))
            return 1
        except self._ray.exceptions.RayError as error:
            process.note(directory, f"lost with its machine: {_first_line(error)}")
            return LOST


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _last_line(error: Exception) -> str:
    return str(error).strip().split("\n")[-1]
