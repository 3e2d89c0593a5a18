"""Many small robust regressions at once: a damped Newton method in JAX float64, vmapped over starts and resamples.

A law has at most nine parameters, so its exact Hessian is cheap, and Newton's method ends where quasi-Newton methods
with default tolerances stop early: that failure gave Hoffmann et al. (2022) their third estimate (Besiroglu et al.
2024).
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Law = Callable[[Array, Mapping[str, Array]], Array]
"""(theta_P, data) -> log of the predicted loss [R]; a module-level function, since it keys the compilation cache."""

CHUNK = 128  # problems in one compiled call; the slowest of a chunk decides how long it runs
ITERATIONS = 200
DAMPING_Q = np.concatenate([[0.0], np.logspace(-14, 6, 61)])  # relative to the largest curvature
TOLERANCE = 1e-9  # in squared deltas, see `objective`: far below what moves a digit of a parameter


class Minima(NamedTuple):
    """One row a problem: where it ended, and the objective there."""

    theta_KP: np.ndarray
    value_K: np.ndarray


class _State(NamedTuple):
    theta_P: Array
    value: Array
    gradient_P: Array
    hessian_PP: Array
    radius: Array
    decrease: Array
    iteration: Array


@contextlib.contextmanager
def float64_on_cpu() -> Generator[None]:
    """Within it JAX computes in float64 on the CPU, whatever the rest of the process does."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def objective(law: Law, theta_P: Any, data: Mapping[str, Any], weight_R: Any, delta: Any) -> Any:
    """sum_r weight_r * huber_1((log L^_r - log L_r) / delta): the published sum of Huber_delta, divided by delta^2.

    The minimiser is the same. But the sum itself is about 1e-4, below the absolute tolerances that optimisers take for
    zero; divided by delta^2 it counts squared standard deviations, one a run, and a stopping rule means something.
    """
    z_R = abs(law(theta_P, data) - data["log_loss"]) / delta
    xp = np if isinstance(z_R, np.ndarray) else jnp
    return xp.sum(weight_R * xp.where(z_R <= 1, 0.5 * z_R**2, z_R - 0.5), axis=-1)


def minimise(law: Law, data: Mapping[str, np.ndarray], delta: float, free_P, theta_KP, weight_KR) -> Minima:
    """Minimise `objective` from each start, under each weighting of the runs.

    Args:
      law: the law, in the coordinates theta.
      data: columns [R] for the law, and `log_loss`.
      delta: where the Huber loss turns from squares to absolute values, in units of log loss.
      free_P: which coordinates move; the others keep their start, and may be infinite.
      theta_KP: starts.
      weight_KR: weight of each run in each problem: ones for a plain fit, counts for a bootstrap resample.

    A delta far below the residuals makes the loss a sum of absolute values, whose curvature tells Newton's method
    nothing from afar; it is reached in steps of ten from 1e-2, each stage starting where the one before ended.
    """
    with float64_on_cpu():
        columns = {name: jnp.asarray(column) for name, column in data.items()}
        free_P = jnp.asarray(free_P)
        ends = []
        for start_KP, counts_KR in zip(_chunks(theta_KP), _chunks(weight_KR), strict=True):
            end_KP = jnp.asarray(start_KP)
            for stage in (*(wider for wider in (1e-2, 1e-3, 1e-4) if wider > 3 * delta), delta):
                end_KP, value_K = _minimise_chunk(law, end_KP, jnp.asarray(counts_KR), columns, stage, free_P)
            ends.append((end_KP, value_K))
        return Minima(*(np.concatenate(pieces)[: len(theta_KP)] for pieces in zip(*ends, strict=True)))


def values(law: Law, data: Mapping[str, np.ndarray], delta: float, theta_KP: np.ndarray) -> np.ndarray:
    """The objective [K] at each row of parameters, each run weighing one; in NumPy, as a grid needs no derivatives."""
    pieces = np.array_split(theta_KP, 1 + len(theta_KP) * len(data["log_loss"]) // 1_000_000)
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate([objective(law, piece[:, None, :], data, 1.0, delta) for piece in pieces])


@functools.partial(jax.jit, static_argnums=0)
def _minimise_chunk(law, theta_KP, weight_KR, data, delta, free_P):
    one = functools.partial(_newton, law, data=data, delta=delta, free_P=free_P)
    return jax.vmap(one)(theta_KP, weight_KR)


def _newton(law, theta_P, weight_R, *, data, delta, free_P):
    """A trust-region Newton method in the eigenbasis of the Hessian, with every curvature taken positive.

    The step is damped just enough to stay within the radius, which grows while the quadratic model foretells the
    decrease and shrinks when it does not; the last steps are Newton's own.
    """

    def evaluate(theta_P):
        f = functools.partial(objective, law, data=data, weight_R=weight_R, delta=delta)
        value, gradient_P = jax.value_and_grad(f)(theta_P)
        hessian_PP = jnp.where(free_P[:, None] & free_P, jax.hessian(f)(theta_P), jnp.diag(1.0 * ~free_P))
        return value, jnp.where(free_P, gradient_P, 0.0), hessian_PP

    def step(state):
        curvature_P, basis_PP = jnp.linalg.eigh(state.hessian_PP)
        slope_P, curvature_P = basis_PP.T @ state.gradient_P, jnp.abs(curvature_P)
        move_QP = slope_P / (curvature_P + curvature_P.max() * DAMPING_Q[:, None] + 1e-30)
        move_P = move_QP[jnp.argmax(jnp.linalg.norm(move_QP, axis=1) <= state.radius)]
        decrease = slope_P @ move_P - 0.5 * curvature_P @ move_P**2
        # A coordinate that is held stays to the bit: the eigenbasis keeps it apart only to rounding.
        theta_P = jnp.where(free_P, state.theta_P - basis_PP @ move_P, state.theta_P)
        value, gradient_P, hessian_PP = evaluate(theta_P)
        sound = jnp.isfinite(value) & jnp.isfinite(gradient_P).all() & jnp.isfinite(hessian_PP).all()
        better = sound & (value <= state.value)
        as_told = state.value - value > 0.5 * decrease
        radius = state.radius * jnp.where(better, jnp.where(as_told, 2.0, 0.7), 0.25)
        tried = _State(theta_P, value, gradient_P, hessian_PP, radius, decrease, state.iteration + 1)
        stay = state._replace(radius=radius, decrease=decrease, iteration=tried.iteration)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), tried, stay)

    def unfinished(state):
        return (state.iteration < 2) | (state.iteration < ITERATIONS) & (state.decrease > TOLERANCE)

    # An infinite objective without a slope: the first step stays where it is and evaluates it, or rejects an unsound
    # start.
    infinity, one, count = jnp.full((), jnp.inf), jnp.ones(()), jnp.zeros((), jnp.int32)
    start = _State(theta_P, infinity, jnp.zeros_like(theta_P), jnp.eye(len(theta_P)), one, infinity, count)
    end = jax.lax.while_loop(unfinished, step, start)
    return end.theta_P, end.value


def _chunks(rows_K: np.ndarray) -> Generator[np.ndarray]:
    """Rows in pieces of CHUNK, the last filled up with copies of its last row so that every piece compiles the same."""
    for start in range(0, len(rows_K), CHUNK):
        piece = np.asarray(rows_K[start : start + CHUNK], dtype=np.float64)
        yield np.concatenate([piece, np.repeat(piece[-1:], CHUNK - len(piece), axis=0)])
