"""The laws: what loss a model of N parameters reaches after D tokens, alone or with a teacher.

`Supervised` is Eq. 1 and `Distillation` is Eq. 8 of Busbridge et al., "Distillation Scaling Laws" (arXiv 2502.08606v2);
`DataConstrained` is the law of Muennighoff et al. (arXiv 2305.16264) for tokens that are repeated. N counts parameters
without the token embedding, D counts tokens, every loss is a cross-entropy on data in nats per token.

The functions take numbers, NumPy arrays or JAX arrays, and broadcast. They compute in float64 with NumPy unless an
input is a JAX array, so a law gives the same digits in a notebook whether or not JAX was told to use 64 bits.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Supervised:
    """L(N, D) = E + (A / N^alpha + B / D^beta)^gamma, with the irreducible loss E.

    gamma = 1 is the law of Hoffmann et al. (2022); beta = 1 with E = 0 is that of Kaplan et al. (2020). Fields are
    floats, or arrays of one shape where many laws are evaluated at once (bootstrap resamples).
    """

    A: Any
    B: Any
    E: Any
    alpha: Any
    beta: Any
    gamma: Any = 1.0

    @classmethod
    def kaplan(cls, *, N_c: float, D_c: float, alpha_N: float, alpha_D: float) -> "Supervised":
        """[(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D, Eq. 1.5 of Kaplan et al. (2020), as the case it is."""
        ratio = alpha_N / alpha_D
        return cls(A=N_c**ratio, B=D_c, E=0.0, alpha=ratio, beta=1.0, gamma=alpha_D)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distillation:
    """L_S = L_T + L_T^-c0 * g(L_T / L~_S) * (A / N_S^alpha + B / D_S^beta)^gamma, with the gate g of `log_gate`.

    The gate is written with kappa = c1 * f1 * d1^(-1/f1), for runs fix kappa and hardly ever c1 and d1 apart: below the
    break only kappa enters. `c1 = inf` is the exact limit, g(r) = exp(-kappa * r^(1/f1)), with one parameter fewer.
    """

    A: Any
    B: Any
    alpha: Any
    beta: Any
    gamma: Any
    c0: Any
    kappa: Any
    f1: Any
    c1: Any = math.inf

    @classmethod
    def published(cls, *, c1: float, d1: float, f1: float, **others: float) -> "Distillation":
        """The law from the paper's own (c1, d1, f1), Eq. 8."""
        return cls(kappa=c1 * f1 * d1 ** (-1 / f1), f1=f1, c1=c1, **others)

    @property
    def d1(self) -> Any:
        """The ratio L_T / L~_S at which the gate breaks; infinite in the limit c1 = inf."""
        return (self.c1 * self.f1 / self.kappa) ** self.f1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DataConstrained:
    """The supervised law `base` with what it counts replaced by what repetition leaves of it.

    Attributes:
      base: the law of tokens that are all new.
      R_D: R*_D, how many repetitions a token's worth lasts: it decays as exp(-repetitions / R_D).
      R_N: R*_N, the same of parameters beyond those that the unique tokens can train.
    """

    base: Supervised
    R_D: Any
    R_N: Any


BUSBRIDGE_SUPERVISED = Supervised(A=3355.0, B=18186.0, E=1.220, alpha=0.408, beta=0.431, gamma=0.452)
"""arXiv 2502.08606v2, Table 6: 73 runs of 143M to 12.6B parameters on C4."""

BUSBRIDGE_DISTILLATION_PRINTED = Distillation.published(
    A=2243.0, B=24181.0, alpha=0.321, beta=0.637, gamma=0.764, c0=2.549, c1=522.6, f1=0.090, d1=1.315
)
"""arXiv 2502.08606v2, Table 6: 697 runs. Its B is doubted, see `BUSBRIDGE_DISTILLATION_CALIBRATED`."""

BUSBRIDGE_DISTILLATION_CALIBRATED = dataclasses.replace(BUSBRIDGE_DISTILLATION_PRINTED, B=2.4181e6)
"""The printed law with a hundred times its B, which is our estimate and no published number.

With the printed B the data term is about 1/200 of the parameter term at 143M parameters and 2.9B tokens: the loss
hardly depends on D_S and a student's IsoFLOP curve has no minimum, although the paper's figures show both. A factor of
100 brings back nearly every number that can be read off those figures. Use neither as truth: fit your own runs.
"""

HOFFMANN = Supervised(A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28)
"""Hoffmann et al. 2022 (arXiv 2203.15556), third approach; its optimiser stopped early, see `BESIROGLU`."""

BESIROGLU = Supervised(A=482.006, B=2085.434, E=1.81686, alpha=0.34781, beta=0.36585)
"""Besiroglu et al. 2024 (arXiv 2404.10102): the same runs, read off a figure and fitted again until converged."""

KAPLAN = Supervised.kaplan(N_c=6.4e13, D_c=1.8e13, alpha_N=0.076, alpha_D=0.103)
"""Kaplan et al. 2020 (arXiv 2001.08361), Table 2: the joint fit, on WebText2 in its own tokens."""

MUENNIGHOFF = DataConstrained(
    base=Supervised(
        A=math.exp(6.255414), B=math.exp(7.3049974), E=math.exp(0.6254804), alpha=0.3526596, beta=0.3526596
    ),
    R_D=15.387756,
    R_N=5.309743,
)
"""Muennighoff et al. 2023 (arXiv 2305.16264), digits of the authors' fit: 182 runs on C4, the base law held."""


def supervised(params: Supervised, N: Any, D: Any) -> Any:
    """Loss in nats per token of a model of `N` parameters after `D` tokens (Eq. 1)."""
    return params.E + (params.A / N**params.alpha + params.B / D**params.beta) ** params.gamma


def log_supervised(params: Supervised, N: Any, D: Any) -> Any:
    """log of `supervised`, from logarithms alone: the form to fit, since no start overflows it (Eq. 45)."""
    xp = _numpy_or_jax(params, N, D)
    with np.errstate(divide="ignore"):  # log 0 is right where E is 0, as in Kaplan's form
        return xp.logaddexp(xp.log(params.E), _log_power_law(xp, params, N, D))


def optimal_tokens(params: Supervised, N: Any, elasticity: Any = 1.0) -> Any:
    """D of the compute-optimal model of `N` parameters: the cheapest way to its loss, in closed form.

    At the minimum of L at fixed F(N) D, alpha A / N^alpha = elasticity * beta B / D^beta, whatever gamma and E are.
    `elasticity` is d log F / d log N; with its 1 (F = 2N) this is the frontier of Hoffmann et al. (2022), Eq. 4.
    """
    return (elasticity * params.beta * params.B * N**params.alpha / (params.alpha * params.A)) ** (1 / params.beta)


def optimal_parameters(params: Supervised, D: Any) -> Any:
    """N of the compute-optimal model of `D` tokens where F = 2N: the inverse of `optimal_tokens`."""
    return (params.alpha * params.A * D**params.beta / (params.beta * params.B)) ** (1 / params.alpha)


def data_constrained(params: DataConstrained, N: Any, D: Any, unique: Any) -> Any:
    """Loss in nats per token after `D` tokens of which only `unique` differ (Muennighoff et al. 2023).

    With D <= unique and N no more than those tokens can train, it is the base law.
    """
    xp = _numpy_or_jax(params, N, D, unique)
    unique_D = xp.minimum(unique, D)
    unique_N = xp.minimum(optimal_parameters(params.base, unique_D), N)
    return supervised(params.base, _worth(xp, N, unique_N, params.R_N), _worth(xp, D, unique_D, params.R_D))


def _worth(xp: Any, total: Any, unique: Any, R: Any) -> Any:
    """What `total` is worth when only `unique` of it is new: at most (1 + R) times that."""
    return unique * (1 - R * xp.expm1((1 - total / unique) / R))


def distillation(params: Distillation, N_S: Any, D_S: Any, L_T: Any, L_supervised: Any) -> Any:
    """Loss on data, in nats per token, of a student of `N_S` parameters distilled on `D_S` tokens (Eq. 8).

    Args:
      params: the law.
      N_S: student parameters.
      D_S: tokens of distillation.
      L_T: the teacher's loss on data.
      L_supervised: L~_S, what the student would reach on `D_S` tokens without a teacher: `supervised(law, N_S, D_S)`.

    Returns:
      L_S, always above `L_T`: the law has no place for a student that beats its teacher, so such runs keep a residual.
    """
    xp = _numpy_or_jax(params, N_S, D_S, L_T, L_supervised)
    with np.errstate(over="ignore"):  # far outside of its runs a bootstrap's law may say infinity
        return L_T + xp.exp(_log_distance(xp, params, N_S, D_S, L_T, L_supervised))


def log_distillation(params: Distillation, N_S: Any, D_S: Any, L_T: Any, L_supervised: Any) -> Any:
    """log of `distillation`, from logarithms alone (Eq. 49, whose gamma is gamma')."""
    xp = _numpy_or_jax(params, N_S, D_S, L_T, L_supervised)
    return xp.logaddexp(xp.log(L_T), _log_distance(xp, params, N_S, D_S, L_T, L_supervised))


def _log_distance(xp: Any, params: Distillation, N_S: Any, D_S: Any, L_T: Any, L_supervised: Any) -> Any:
    """log of (L_S - L_T), whose factors may overflow where their product does not."""
    own = log_gate(params, L_T / L_supervised) + _log_power_law(xp, params, N_S, D_S)
    return own - params.c0 * xp.log(L_T)


def log_gate(params: Distillation, ratio: Any) -> Any:
    """log g(ratio), g(r) = [1 + (r / d1)^(1/f1)]^(-c1 f1): near 1 under a strong teacher, 0 under one far too weak.

    `ratio` is L_T / L~_S. With c1 = inf it is -kappa * r^(1/f1), the limit of the same expression.
    """
    xp = _numpy_or_jax(params, ratio)
    log_x = xp.log(params.kappa) + xp.log(ratio) / params.f1
    limit = xp.isinf(params.c1)
    width = (
        xp.where(limit, 1.0, params.c1) * params.f1
    )  # a finite stand-in, or the unused branch would give NaN gradients
    with np.errstate(over="ignore"):  # a gate whose logarithm is -infinity is shut
        return -xp.where(limit, xp.exp(log_x), width * xp.logaddexp(0.0, log_x - xp.log(width)))


def _log_power_law(xp: Any, params: Supervised | Distillation, N: Any, D: Any) -> Any:
    """log of (A / N^alpha + B / D^beta)^gamma."""
    log_from_N = xp.log(params.A) - params.alpha * xp.log(N)
    log_from_D = xp.log(params.B) - params.beta * xp.log(D)
    return params.gamma * xp.logaddexp(log_from_N, log_from_D)


def _numpy_or_jax(*inputs: Any) -> Any:
    return jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(inputs)) else np
