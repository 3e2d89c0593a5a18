"""Sinkhorn distillation: optimal transport between the distributions of several positions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.lazy import check_whole_distribution
from jaxdistill.losses.loss import check_temperature


@dataclasses.dataclass(frozen=True)
class Sinkhorn:
    """sum_j P_ij W_ij for position i, W_ij = |q_i - p_j|_1 within each window of positions (SinKD, arXiv 2402.17110).

    P is exp(-W / epsilon) after `iterations` normalisations of rows and columns in turn. As epsilon goes to 0 its sum
    over a window goes to the cost of the best assignment of student to teacher positions. At larger epsilon it is not 0
    where both agree, and in any case it grows with the window. Positions that count nowhere are blank in both models
    and pair among themselves. The cost takes window^2 V operations a window, and window V memory.

    Attributes:
      window: consecutive positions of a sequence that are transported into one another.
      temperature: of both sides; the paper takes 2, without a factor T^2.
      epsilon: strength of the entropic regularisation.
      iterations: normalisations of rows and columns.

    Raises InputError where windows do not fill the positions at hand: in the streamed ops, set `positions` to a
    multiple of the window that divides the sequence length.
    """

    window: int = 8
    temperature: float = 2.0
    epsilon: float = 0.1
    iterations: int = 20

    def __post_init__(self):
        check_temperature(self)
        if not (self.window >= 1 and self.epsilon > 0 and self.iterations >= 1):
            raise InputError(
                f"Sinkhorn has window {self.window}, epsilon {self.epsilon} and {self.iterations} iterations; "
                "each must be above 0"
            )

    def __call__(self, z_BLV: Array, target: Any) -> Array:
        check_whole_distribution(target)
        B, L, V = z_BLV.shape
        if L % self.window:
            raise InputError(
                f"Sinkhorn has windows of {self.window} positions and got {L}: choose `positions` as a multiple of the "
                "window that divides the sequence length"
            )
        sides = [jax.nn.softmax(z / self.temperature, axis=-1) for z in (z_BLV, target.logits(z_BLV))]
        q, p = (side_BLV.reshape(-1, self.window, V) for side_BLV in sides)
        cost = _distances(q, jax.lax.stop_gradient(p))
        return jnp.sum(self.plan(cost) * cost, axis=-1).reshape(B, L)

    def plan(self, cost: Array) -> Array:
        """[windows, i, j], rows and columns normalised in turn, in logs so that a small epsilon does not underflow."""

        def normalise(_, log_plan):
            log_plan = log_plan - jax.nn.logsumexp(log_plan, axis=-1, keepdims=True)
            return log_plan - jax.nn.logsumexp(log_plan, axis=-2, keepdims=True)

        return jnp.exp(jax.lax.fori_loop(0, self.iterations, normalise, -cost / self.epsilon))


def _distances(q: Array, p: Array) -> Array:
    """L1 distances [windows, i, j], for one j at a time and again in the backward pass: all at once take i j V."""
    to_one = jax.checkpoint(lambda p_of_j: jnp.sum(jnp.abs(q - p_of_j[:, None]), axis=-1))
    return jnp.moveaxis(jax.lax.map(to_one, jnp.moveaxis(p, 1, 0)), 0, -1)
