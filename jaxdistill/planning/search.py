"""Other settings of an experiment, compiled and ranked: from the best so far to its neighbours, until enough is tried.

A neighbour differs in one setting: an axis of the mesh or the batch doubled or halved, twice or half the micro-batches,
activations kept or recomputed, another table.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxdistill.errors import InputError
from jaxdistill.experiment import Experiment
from jaxdistill.parallel import rules
from jaxdistill.planning import compiling, estimate
from jaxdistill.planning.worker import Question

Settings = tuple[tuple[str, Any], ...]
AXES = ("data", "tensor", "context")  # what is left of the devices is fsdp


@dataclasses.dataclass(frozen=True)
class Tried:
    """One setting: the overrides that make it, and the worker's answer, or why there is none."""

    overrides: tuple[str, ...]
    said: Mapping[str, Any] | None
    refusal: str = ""

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller is better: what fits by tokens a second, what does not by how much memory it needs."""
        if self.said is None:
            return True, float("inf")
        found = estimate.of(self.said)
        if estimate.fits(self.said):
            return False, -found.tokens if found else self.said["needed"]
        return True, self.said["needed"]


def search(
    question: Question,
    most: int,
    *,
    processes: int = 1,
    tried: Callable[[Tried], None] = lambda one: None,
    ask: Callable[[Question], Mapping[str, Any]] = compiling.compile_step,
) -> list[Tried]:
    """At most `most` compiled settings, the best first; those that the mesh or the devices refuse do not count.

    Args:
      question: whose experiment is the first setting.
      processes: compilations at a time.
      tried: is told of every one.
      ask: gives the facts of a question.
    """
    experiment = question.experiment()
    start, open_axes = settings_of(experiment), -1 in dataclasses.astuple(experiment.mesh)
    results: dict[Settings, Tried] = {}
    waiting = [start]
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        while waiting and (room := most - sum(one.said is not None for one in results.values())) > 0:
            chosen = waiting[: min(processes, room)]
            asked = [_changed(question, start, settings, open_axes) for settings in chosen]
            for settings, one in zip(chosen, pool.map(functools.partial(_try, ask), asked), strict=True):
                results[settings] = one
                if one.said is not None:
                    tried(one)
            best_first = sorted((key for key in results if results[key].said), key=lambda key: results[key].rank)
            waiting = [n for key in best_first for n in neighbours(key, start) if n not in results]
            waiting = list(dict.fromkeys(waiting))
    if not any(one.said for one in results.values()):
        raise InputError(results[start].refusal)
    return sorted((one for one in results.values() if one.said is not None), key=lambda one: one.rank)


def settings_of(experiment: Experiment) -> Settings:
    """What a search may change in an experiment."""
    axes = {f"mesh.{axis}": getattr(experiment.mesh, axis) for axis in AXES}
    rest = {name: getattr(experiment, name) for name in ("batch", "accumulate", "remat", "table")}
    return tuple((axes | rest).items())


def neighbours(settings: Settings, start: Settings) -> Iterator[Settings]:
    """Settings that differ in one thing; a batch stays within half and twice the one that was asked for."""
    now, batch = dict(settings), dict(start)["batch"]
    for name, value in now.items():
        if name == "remat":
            yield tuple((now | {name: not value}).items())
        elif name == "table":
            yield from (tuple((now | {name: other}).items()) for other in rules.TABLES if other != value)
        else:
            least, most = (batch // 2, 2 * batch) if name == "batch" else (1, math.inf)
            others = (other for other in (2 * value, value // 2) if max(1, least) <= other <= most)
            yield from (tuple((now | {name: other}).items()) for other in others)


def _changed(question: Question, start: Settings, settings: Settings, open_axes: bool) -> Question:
    """The question with other settings; where no axis is left open, fsdp gives way to the others."""
    changed = {name: value for name, value in settings if (name, value) not in start}
    if any(name.startswith("mesh.") for name in changed) and not open_axes:
        changed["mesh.fsdp"] = -1
    ordered = sorted(changed.items(), key=lambda one: one[0] == "accumulate")  # which must divide the batch
    said = tuple(f"{name}={str(value).lower()}" for name, value in ordered)
    return dataclasses.replace(question, overrides=question.overrides + said)


def _try(ask: Callable[[Question], Mapping[str, Any]], question: Question) -> Tried:
    try:
        return Tried(question.overrides, ask(question))
    except InputError as refusal:
        return Tried(question.overrides, None, str(refusal))
