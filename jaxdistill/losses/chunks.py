"""Divergences of two chunk log-probabilities: the chunk is a coin that each model says yes to (ALM, arXiv 2503.20083).

With P = p^(1 / tau) and Q = q^(1 / tau) of teacher and student, each is tau times an f-divergence of the coins
(P, 1 - P) and (Q, 1 - Q). It is 0 where p = q, and at tau = 1 at most that of the whole distributions over chunks, by
the data-processing inequality.

The factor tau is ours: a coin's divergence falls off as 1 / tau, and with the factor every one of them has a limit at
tau = infinity, where P and Q are 1 and tau (1 - P) is -log p: a divergence of two Poisson rates. Gradients in log q
stay of one size. ALM's loss at tau is the one here divided by tau, up to a constant of the teacher.

A small q is often known much better than 1 - q, and the other way round. So value and slope are both written with what
each is exact in, and no difference of nearly equal numbers is left: where p = q, both are exactly zero.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError

FLOOR = 1e-6  # nats below zero: fp32 log-probabilities tell no more of 1 - p, and 1 / (1 - q) has to stay finite


class Coins(NamedTuple):
    """Two coins, in numbers that are exact at either end and finite at tau = infinity; all [B, C].

    Attributes:
      q: the student's yes, and `p` the teacher's.
      not_p: tau (1 - P), and `not_q` tau (1 - Q).
      gap: tau (P - Q).
      surprise: tau log(P / Q) = log p - log q.
      log_yes: log(P / Q).
      log_no: log((1 - Q) / (1 - P)).
      log_q: log Q, where Q itself may be too small for fp32.
    """

    p: Array
    q: Array
    not_p: Array
    not_q: Array
    gap: Array
    surprise: Array
    log_yes: Array
    log_no: Array
    log_q: Array


def coins(logp_teacher_BC: Array, logp_student_BC: Array, tau: float) -> Coins:
    """The coins of two chunk log-probabilities; what rounding left above 0 counts as 0."""
    a_BC, b_BC = (FLOOR - jnp.minimum(logp_BC, 0) for logp_BC in (logp_teacher_BC, logp_student_BC))
    less_BC, surprise_BC = jnp.minimum(a_BC, b_BC), b_BC - a_BC
    not_p_BC, not_q_BC = _complement(a_BC, tau), _complement(b_BC, tau)
    gap_BC = jnp.sign(surprise_BC) * jnp.exp(-less_BC / tau) * _complement(jnp.abs(surprise_BC), tau)
    share_BC = gap_BC / not_p_BC
    is_near_BC = jnp.abs(share_BC) < 0.5
    log_no_BC = jnp.where(
        is_near_BC, jnp.log1p(jnp.where(is_near_BC, share_BC, 0)), jnp.log(not_q_BC) - jnp.log(not_p_BC)
    )
    yes = jnp.exp(-a_BC / tau), jnp.exp(-b_BC / tau)
    return Coins(*yes, not_p_BC, not_q_BC, gap_BC, surprise_BC, surprise_BC / tau, log_no_BC, -b_BC / tau)


def _complement(x_BC: Array, tau: float) -> Array:
    """tau (1 - exp(-x / tau)), and x at infinity."""
    return x_BC if math.isinf(tau) else -tau * jnp.expm1(-x_BC / tau)


@dataclasses.dataclass(frozen=True)
class ChunkDivergence:
    """What all have in common: called with log-probabilities [B, C] of teacher and student, it gives fp32 [B, C].

    Differentiable in the student's alone: the teacher's are data, and pass no gradient.

    Attributes:
      temperature: tau, above 0; math.inf for the limit. ALM uses 100, and found 5 as good or better.
    """

    temperature: float = 100.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise InputError(f"{type(self).__name__}.temperature is {self.temperature}; it must be above 0")

    def value(self, coins: Coins) -> Array:
        """The divergence."""
        raise NotImplementedError

    def slope(self, coins: Coins) -> Array:
        """Its derivative in the student's log-probability."""
        raise NotImplementedError

    def __call__(self, logp_teacher_BC: jax.typing.ArrayLike, logp_student_BC: jax.typing.ArrayLike) -> Array:
        return _value(self, jnp.asarray(logp_teacher_BC, jnp.float32), jnp.asarray(logp_student_BC, jnp.float32))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(divergence: ChunkDivergence, logp_teacher_BC: Array, logp_student_BC: Array) -> Array:
    return divergence.value(coins(logp_teacher_BC, logp_student_BC, divergence.temperature))


@_value.defjvp
def _value_and_slope(divergence, primals, tangents):
    both = coins(*primals, divergence.temperature)
    return divergence.value(both), divergence.slope(both) * tangents[1]


@dataclasses.dataclass(frozen=True)
class ChunkKL(ChunkDivergence):
    """tau [P log(P / Q) + (1 - P) log((1 - P) / (1 - Q))], the loss of ALM; in the limit b - a + a log(a / b).

    Here a = -log p and b = -log q. The derivative in log q is (Q - P) / (1 - Q), in the limit a / b - 1.
    """

    def value(self, coins: Coins) -> Array:
        return coins.p * coins.surprise - coins.not_p * coins.log_no

    def slope(self, coins: Coins) -> Array:
        return -coins.gap / coins.not_q


@dataclasses.dataclass(frozen=True)
class ChunkReverseKL(ChunkDivergence):
    """tau [Q log(Q / P) + (1 - Q) log((1 - Q) / (1 - P))]; in the limit a - b + b log(b / a)."""

    def value(self, coins: Coins) -> Array:
        return coins.not_q * coins.log_no - coins.q * coins.surprise

    def slope(self, coins: Coins) -> Array:
        return -coins.q * (coins.log_yes + coins.log_no)


@dataclasses.dataclass(frozen=True)
class ChunkTotalVariation(ChunkDivergence):
    """tau |P - Q|; in the limit |log p - log q|. It has a kink at p = q, where its slope is taken to be 0."""

    def value(self, coins: Coins) -> Array:
        return jnp.abs(coins.gap)

    def slope(self, coins: Coins) -> Array:
        return -coins.q * jnp.sign(coins.gap)


@dataclasses.dataclass(frozen=True)
class ChunkRenyi(ChunkDivergence):
    """tau / (alpha - 1) log[P^alpha Q^(1 - alpha) + (1 - P)^alpha (1 - Q)^(1 - alpha)] (Renyi 1961); ChunkKL at 1.

    In the limit [a^alpha b^(1 - alpha) - alpha a - (1 - alpha) b] / (alpha - 1), whose slope (a / b)^alpha - 1 leaves
    fp32 for an alpha above 3 and a student that is far too sure.

    Attributes:
      alpha: the order, above 0 and not 1.
    """

    alpha: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.alpha < math.inf or self.alpha == 1:
            raise InputError(f"ChunkRenyi.alpha is {self.alpha}; it must be above 0 and not 1, where it is ChunkKL")

    def value(self, coins: Coins) -> Array:
        return (self.alpha * coins.surprise + self._tilt(coins)[0]) / (self.alpha - 1)

    def slope(self, coins: Coins) -> Array:
        return self._tilt(coins)[1]

    def _tilt(self, coins: Coins) -> tuple[Array, Array]:
        """tau log m and Q (e^x - 1) / m, where m = Q + (1 - Q) e^x and x is -alpha times the log of the odds ratio."""
        x_BC = -self.alpha * (coins.log_yes + coins.log_no)
        if math.isinf(self.temperature):
            return coins.not_q * jnp.expm1(x_BC), jnp.expm1(x_BC)
        not_q_BC = coins.not_q / self.temperature
        change_BC = not_q_BC * jnp.expm1(x_BC)  # m - 1
        is_near_BC = jnp.abs(change_BC) < 0.5
        log_m_BC = jnp.where(
            is_near_BC,
            jnp.log1p(jnp.where(is_near_BC, change_BC, 0)),
            jnp.logaddexp(coins.log_q, jnp.log(not_q_BC) + x_BC),
        )
        share_BC = jnp.exp(coins.log_q + jnp.maximum(x_BC, 0) - log_m_BC)
        return self.temperature * log_m_BC, -jnp.sign(x_BC) * jnp.expm1(-jnp.abs(x_BC)) * share_BC
