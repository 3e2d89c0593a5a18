"""Many small robust regressions at once: a damped Newton method in JAX float64, vmapped over starts and resamples.

A law has at most nine parameters, so its exact Hessian is cheap, and Newton's method ends where quasi-Newton methods with
default tolerances stop early: that failure gave Hoffmann et al. (2022) their third estimate (Besiroglu et al. 2024).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

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
    """One row a problem: parameters [K, P], objective [K], and its Hessian there [K, P, P]."""

    theta_KP: np.ndarray
    value_K: np.ndarray
    hessian_KPP: np.ndarray


class _State(NamedTuple):
    theta_P: Array
    value: Array
    gradient_P: Array
    hessian_PP: Array
    radius: Array
    decrease: Array
    iteration: Array


@contextlib.contextmanager
def float64_on_cpu() -> Iterator[None]:
    """Within it JAX computes in float64 on the CPU, whatever the rest of the process does."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def objective(law: Law, theta_P: Array, data: Mapping[str, Array], weight_R: Array, delta: Array) -> Array:
    """sum_r weight_r * huber_1((log L^_r - log L_r) / delta): the published sum of Huber_delta, divided by delta^2.

    The minimiser is the same. But the sum itself is about 1e-4, below the absolute tolerances that optimisers take for zero;
    divided by delta^2 it counts squared standard deviations, one a run, and a stopping rule means something.
    """
    z_R = jnp.abs(law(theta_P, data) - data["log_loss"]) / delta
    return jnp.sum(weight_R * jnp.where(z_R <= 1, 0.5 * z_R**2, z_R - 0.5))


def minimise(law: Law, data: Mapping[str, np.ndarray], delta: float, free_P, theta_KP, weight_KR) -> Minima:
    """Minimise `objective` from each start, under each weighting of the runs.

    Args:
      law: the law, in the coordinates theta.
      data: columns [R] for the law, and `log_loss`.
      delta: where the Huber loss turns from squares to absolute values, in units of log loss.
      free_P: which coordinates move; the others keep their start, and may be infinite.
      theta_KP: starts.
      weight_KR: weight of each run in each problem: ones for a plain fit, counts for a bootstrap resample.

    A delta far below the residuals makes the loss a sum of absolute values, whose curvature tells Newton's method nothing
    from afar; it is reached in steps of ten from 1e-2, each stage starting where the one before ended.
    """
    with float64_on_cpu():
        data = {name: jnp.asarray(column) for name, column in data.items()}
        chunks, problems = [], len(theta_KP)
        for theta_KP, weight_KR in zip(_chunks(theta_KP), _chunks(weight_KR), strict=True):  # noqa: B020
            for stage in (*(0.1**power for power in (2, 3, 4) if 0.1**power > 3 * delta), delta):
                minima = _minimise_chunk(
                    law, jnp.asarray(theta_KP), jnp.asarray(weight_KR), data, stage, jnp.asarray(free_P)
                )
                theta_KP = minima[0]
            chunks.append(minima)
        return Minima(*(np.concatenate(column)[:problems] for column in zip(*chunks, strict=True)))


def values(law: Law, data: Mapping[str, np.ndarray], delta: float, theta_KP: np.ndarray) -> np.ndarray:
    """The objective [K] at each row of parameters, each run weighing one."""
    with float64_on_cpu():
        data = {name: jnp.asarray(column) for name, column in data.items()}
        return np.asarray(_values(law, jnp.asarray(theta_KP), data, delta))


@functools.partial(jax.jit, static_argnums=0)
def _values(law, theta_KP, data, delta):
    return jax.lax.map(lambda theta_P: objective(law, theta_P, data, 1.0, delta), theta_KP, batch_size=1024)


@functools.partial(jax.jit, static_argnums=0)
def _minimise_chunk(law, theta_KP, weight_KR, data, delta, free_P):
    one = functools.partial(_newton, law, data=data, delta=delta, free_P=free_P)
    return jax.vmap(one)(theta_KP, weight_KR)


def _newton(law, theta_P, weight_R, *, data, delta, free_P):
    """A trust-region Newton method in the eigenbasis of the Hessian, with every curvature taken positive.

    The step is damped just enough to stay within the radius, which grows while the quadratic model foretells the decrease
    and shrinks when it does not; the last steps are Newton's own.
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
        theta_P = state.theta_P - basis_PP @ move_P
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

    # An infinite objective without a slope: the first step stays where it is and evaluates it, or rejects an unsound start.
    infinity, one, count = jnp.full((), jnp.inf), jnp.ones(()), jnp.zeros((), jnp.int32)
    start = _State(theta_P, infinity, jnp.zeros_like(theta_P), jnp.eye(len(theta_P)), one, infinity, count)
    end = jax.lax.while_loop(unfinished, step, start)
    return end.theta_P, end.value, end.hessian_PP


def _chunks(rows_K: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in pieces of CHUNK, the last filled up with copies of its last row so that every piece compiles the same."""
    for start in range(0, len(rows_K), CHUNK):
        piece = np.asarray(rows_K[start : start + CHUNK], dtype=np.float64)
        yield np.concatenate([piece, np.repeat(piece[-1:], CHUNK - len(piece), axis=0)])
