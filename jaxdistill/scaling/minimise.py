"""Many small robust regressions at once, in JAX float64: every start and every resample is a problem of its own.

Problems go through lanes that are compiled together; one that is done makes room for the next, so that the slowest does
not decide how long the others take. Each core works on lanes of its own.
"""

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.scaling import newton
from jaxdistill.scaling.newton import GAUSS_NEWTON, NEWTON, Law, Method, objective

LANES = 32  # problems in one compiled call: the derivatives of a thousand runs stay in the cache of a core
STRIDE = 8  # iterations between two looks at who is done
SHARE = 256  # problems that a core takes at a time
VALUES = 100_000  # losses that `values` computes at a time, for the same cache


class Minima(NamedTuple):
    """One row a problem: where it ended, and the objective there."""

    theta_KP: np.ndarray
    value_K: np.ndarray


@contextlib.contextmanager
def float64_on_cpu() -> Generator[None]:
    """Within it JAX computes in float64 on the CPU, whatever the rest of the process does."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def minimise(law: Law, data: Mapping[str, np.ndarray], delta: float, free_P, theta_KP, weight_KR) -> Minima:
    """Minimise `newton.objective` from each start, under each weighting of the runs.

    Args:
      law: the law, in the coordinates theta.
      data: columns [R] for the law, and `log_loss`.
      delta: where the Huber loss turns from squares to absolute values, in units of log loss.
      free_P: which coordinates move; the others keep their start, and may be infinite.
      theta_KP: starts.
      weight_KR: weight of each run in each problem: ones for a plain fit, counts for a bootstrap resample.

    A delta far below the residuals makes the loss a sum of absolute values, whose curvature tells little from afar; it
    is reached in steps of ten from 1e-2, each stage starting where the one before ended, and only the last is exact.
    """
    stages = [(GAUSS_NEWTON, wider) for wider in (1e-2, 1e-3, 1e-4) if wider > 3 * delta]
    stages += [(GAUSS_NEWTON, delta), (NEWTON, delta)]

    def part(rows: slice) -> Minima:
        found = Minima(np.array(theta_KP[rows], np.float64), np.empty(0))
        with float64_on_cpu():
            columns, free = {name: jnp.asarray(column) for name, column in data.items()}, jnp.asarray(free_P)
            for method, stage in stages:
                advance = functools.partial(_advance, method, law, data=columns, delta=stage, free_P=free)
                found = _through_lanes(method, advance, found.theta_KP, np.asarray(weight_KR[rows], np.float64))
        return found

    parts = _on_all_cores(part, [slice(first, first + SHARE) for first in range(0, len(theta_KP), SHARE)])
    return Minima(*map(np.concatenate, zip(*parts, strict=True)))


def values(law: Law, data: Mapping[str, np.ndarray], delta: float, theta_KP: np.ndarray) -> np.ndarray:
    """The objective [K] at each row of parameters, each run weighing one; in NumPy, as a grid needs no derivatives."""

    def part(theta_KP: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore"):
            return objective(law, theta_KP[:, None, :], data, 1.0, delta)

    pieces = np.array_split(theta_KP, 1 + len(theta_KP) * len(data["log_loss"]) // VALUES)
    return np.concatenate(_on_all_cores(part, pieces))


def _on_all_cores(function: Callable, parts: Sequence[Any]) -> list[Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:  # NumPy and JAX both let go of the interpreter
        return list(pool.map(function, parts))


def _through_lanes(method: Method, advance: Callable, theta_KP: np.ndarray, weight_KR: np.ndarray) -> Minima:
    """Solve K problems, LANES at a time; lanes that find no problem hold a copy of one, or its end."""
    ends = Minima(np.empty_like(theta_KP), np.empty(len(theta_KP)))
    problem_L = np.arange(LANES)
    copied_L = problem_L % len(theta_KP)
    state, weight_LR = newton.start(theta_KP[copied_L]), weight_KR[copied_L]
    unsolved, following = len(theta_KP), LANES
    while unsolved:
        state = jax.tree.map(np.array, advance(state, weight_LR))
        done_L = ~newton.unfinished(method, state) & (problem_L < len(theta_KP))
        ends.theta_KP[problem_L[done_L]], ends.value_K[problem_L[done_L]] = state.theta_P[done_L], state.value[done_L]
        unsolved -= done_L.sum()
        problem_L[done_L] = following + np.arange(done_L.sum())
        following += done_L.sum()
        fresh_L = done_L & (problem_L < len(theta_KP))
        weight_LR[fresh_L] = weight_KR[problem_L[fresh_L]]
        for lanes, begun in zip(state, newton.start(theta_KP[problem_L[fresh_L]]), strict=True):
            lanes[fresh_L] = begun
    return ends


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(method: Method, law: Law, state: newton.State, weight_LR, *, data, delta, free_P) -> newton.State:
    """STRIDE steps of every lane that is not done."""

    def one(state: newton.State, weight_R) -> newton.State:
        stop = state.iteration + STRIDE
        step = functools.partial(newton.step, method, law, weight_R=weight_R, data=data, delta=delta, free_P=free_P)
        more = lambda state: newton.unfinished(method, state) & (state.iteration < stop)  # noqa: E731
        return jax.lax.while_loop(more, step, state)

    return jax.vmap(one)(state, weight_LR)
