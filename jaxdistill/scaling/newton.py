"""One small robust regression: a trust-region method in the eigenbasis of a Hessian, and the two Hessians it takes.

`GAUSS_NEWTON` is cheap and comes down from anywhere; `NEWTON` is exact and ends where quasi-Newton methods with default
tolerances stop early: that failure gave Hoffmann et al. (2022) their third estimate (Besiroglu et al. 2024).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Law = Callable[[Array, Mapping[str, Array]], Array]
"""(theta_P, data) -> log of the predicted loss [R]; a module-level function, since it keys the compilation cache."""

ITERATIONS = 200
DAMPING_Q = np.concatenate([[0.0], np.logspace(-14, 6, 61)])  # relative to the largest curvature


class State(NamedTuple):
    """Where a regression stands, or one in each row; `decrease` is what the last step promised."""

    theta_P: Any
    value: Any
    gradient_P: Any
    hessian_PP: Any
    radius: Any
    decrease: Any
    iteration: Any


class Method(NamedTuple):
    """How to see the objective near a point, and when to stop.

    Attributes:
      evaluate: (law, theta_P, data, weight_R, delta) -> value, gradient [P] and Hessian [P, P] of `objective`.
      tolerance: of the promised decrease, in squared deltas.
      relative: the same as a share of the objective; whichever is larger counts.
    """

    evaluate: Callable
    tolerance: float
    relative: float


def objective(law: Law, theta_P: Any, data: Mapping[str, Any], weight_R: Any, delta: Any) -> Any:
    """sum_r weight_r * huber_1((log L^_r - log L_r) / delta): the published sum of Huber_delta, divided by delta^2.

    The minimiser is the same. But the sum itself is about 1e-4, below the absolute tolerances that optimisers take for
    zero; divided by delta^2 it counts squared standard deviations, one a run, and a stopping rule means something.
    """
    return _total((law(theta_P, data) - data["log_loss"]) / delta, weight_R)


def _total(z_R: Any, weight_R: Any) -> Any:
    xp: Any = np if isinstance(z_R, np.ndarray) else jnp
    size_R = abs(z_R)
    return xp.sum(weight_R * xp.where(size_R <= 1, 0.5 * z_R**2, size_R - 0.5), axis=-1)


def _exact(law: Law, theta_P: Array, data: Mapping[str, Array], weight_R: Array, delta: Any):
    f = functools.partial(objective, law, data=data, weight_R=weight_R, delta=delta)
    return *jax.value_and_grad(f)(theta_P), jax.hessian(f)(theta_P)


def _majoriser(law: Law, theta_P: Array, data: Mapping[str, Array], weight_R: Array, delta: Any):
    """The Hessian of the parabolas that touch the Huber losses from above, under a law linear in theta.

    It needs first derivatives of the law alone, and has curvature where all residuals are in the Huber loss's linear
    part, as at most starts.
    """
    slope_RP, log_L_R = jax.jacfwd(lambda theta_P: (law(theta_P, data),) * 2, has_aux=True)(theta_P)
    z_R = (log_L_R - data["log_loss"]) / delta
    parabola_R = weight_R / jnp.maximum(abs(z_R), 1.0)
    gradient_P = (weight_R * jnp.clip(z_R, -1.0, 1.0)) @ slope_RP / delta
    return _total(z_R, weight_R), gradient_P, (slope_RP * parabola_R[:, None]).T @ slope_RP / delta**2


GAUSS_NEWTON = Method(_majoriser, tolerance=1e-6, relative=1e-6)
NEWTON = Method(_exact, tolerance=1e-9, relative=0.0)  # far below what moves a digit of a parameter


def start(theta_KP: np.ndarray) -> State:
    """States at K starts. An objective without a slope: the first step stays where it is and evaluates it."""
    count, size = theta_KP.shape
    none_K, eye_KPP = np.full(count, np.inf), np.tile(np.eye(size), (count, 1, 1))
    none = {"value": none_K, "decrease": none_K, "gradient_P": np.zeros((count, size)), "hessian_PP": eye_KPP}
    return State(theta_P=theta_KP, radius=np.ones(count), iteration=np.zeros(count, np.int32), **none)


def unfinished(method: Method, state: State) -> Any:
    """Whether a step may still help; in every row where there are rows."""
    xp: Any = np if isinstance(state.value, np.ndarray) else jnp
    least = xp.maximum(method.tolerance, method.relative * state.value) if method.relative else method.tolerance
    return (state.iteration < 2) | (state.iteration < ITERATIONS) & (state.decrease > least)


def step(method: Method, law: Law, state: State, weight_R: Array, *, data, delta, free_P) -> State:
    """The next state: damped just enough to stay within the radius, every curvature taken positive.

    The radius grows while the quadratic model foretells the decrease and shrinks when it does not; the last steps are
    undamped.
    """
    curvature_P, basis_PP = jnp.linalg.eigh(state.hessian_PP)
    slope_P, curvature_P = basis_PP.T @ state.gradient_P, jnp.abs(curvature_P)
    move_QP = slope_P / (curvature_P + curvature_P.max() * DAMPING_Q[:, None] + 1e-30)
    move_P = move_QP[jnp.argmax(jnp.linalg.norm(move_QP, axis=1) <= state.radius)]
    decrease = slope_P @ move_P - 0.5 * curvature_P @ move_P**2
    # A coordinate that is held stays to the bit: the eigenbasis keeps it apart only to rounding.
    theta_P = jnp.where(free_P, state.theta_P - basis_PP @ move_P, state.theta_P)
    value, gradient_P, hessian_PP = method.evaluate(law, theta_P, data, weight_R, delta)
    gradient_P = jnp.where(free_P, gradient_P, 0.0)
    hessian_PP = jnp.where(free_P[:, None] & free_P, hessian_PP, jnp.diag(1.0 * ~free_P))
    sound = jnp.isfinite(value) & jnp.isfinite(gradient_P).all() & jnp.isfinite(hessian_PP).all()
    better = sound & (value <= state.value)
    as_told = state.value - value > 0.5 * decrease
    radius = state.radius * jnp.where(better, jnp.where(as_told, 2.0, 0.7), 0.25)
    tried = State(theta_P, value, gradient_P, hessian_PP, radius, decrease, state.iteration + 1)
    stay = state._replace(radius=radius, decrease=decrease, iteration=tried.iteration)
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), tried, stay)
