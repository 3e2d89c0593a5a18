"""Divergences of chunks: decimal numbers of sixty digits, closed-form slopes, agreement, both ends, and the limits."""

import decimal
import functools
import itertools
import math
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.losses.chunks import FLOOR, ChunkKL, ChunkRenyi, ChunkReverseKL, ChunkTotalVariation

decimal.getcontext().prec = 60
U = 2.0**-24
SMOOTH = [ChunkKL(), ChunkReverseKL(), ChunkRenyi(alpha=0.3), ChunkRenyi(alpha=2.0)]
ALL = [*SMOOTH, ChunkTotalVariation()]
LOGP = [0.0, -1e-7, -1e-5, -1e-3, -0.05, -0.7, -0.7001, -3.0, -20.0, -60.0]
GRID = np.float32(list(itertools.product(LOGP, LOGP))).T
TAUS = [0.5, 1.0, 5.0, 100.0, 1e5, math.inf]


def at(divergence, tau):
    return type(divergence)(tau, *([divergence.alpha] if isinstance(divergence, ChunkRenyi) else []))


@functools.partial(jax.jit, static_argnums=0)
def both(divergence, log_p, log_q):
    """(value, slope in log q) of every entry."""
    slope = jax.grad(lambda log_q: divergence(log_p, log_q).sum())(log_q)
    return divergence(log_p, log_q), slope


def exact(divergence, a, b):
    """(value, slope, size of its largest term), where a and b are -log p and -log q, from the definitions."""
    if math.isinf(divergence.temperature):
        return exact_limit(divergence, a, b)
    tau = Decimal(divergence.temperature)
    p, q = (-a / tau).exp(), (-b / tau).exp()
    yes, no = (p / q).ln(), ((1 - p) / (1 - q)).ln()
    match divergence:
        case ChunkKL():
            return tau * (p * yes + (1 - p) * no), (q - p) / (1 - q), tau * max(abs(p * yes), abs((1 - p) * no))
        case ChunkReverseKL():
            return tau * -(q * yes + (1 - q) * no), q * (no - yes), tau * max(abs(q * yes), abs((1 - q) * no))
        case ChunkTotalVariation():
            return tau * abs(p - q), q * ((q > p) - (q < p)), tau * abs(p - q)
        case ChunkRenyi(alpha=alpha):
            alpha = Decimal(alpha)
            sum_of = p**alpha * q ** (1 - alpha) + (1 - p) ** alpha * (1 - q) ** (1 - alpha)
            slope = q * (((1 - p) / (1 - q)) ** alpha - (p / q) ** alpha) / sum_of
            value, share_of_no = tau * sum_of.ln() / (alpha - 1), (1 - p) ** alpha * (1 - q) ** (1 - alpha) / sum_of
            return value, slope, abs(value) + tau * (alpha * abs(yes) + share_of_no) / abs(alpha - 1)


def exact_limit(divergence, a, b):
    match divergence:
        case ChunkKL():
            return b - a + a * (a / b).ln(), a / b - 1, max(a, b, a * abs((a / b).ln()))
        case ChunkReverseKL():
            return a - b + b * (b / a).ln(), (a / b).ln(), max(a, b, b * abs((a / b).ln()))
        case ChunkTotalVariation():
            return abs(a - b), Decimal((a > b) - (a < b)), abs(a - b)
        case ChunkRenyi(alpha=alpha):
            alpha = Decimal(alpha)
            tilted = a**alpha * b ** (1 - alpha)
            value = (tilted - alpha * a - (1 - alpha) * b) / (alpha - 1)
            return value, (a / b) ** alpha - 1, max(tilted, a, b) * (1 + alpha) / abs(alpha - 1)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_value_and_slope_are_those_of_the_definition_to_sixty_digits(divergence, tau):
    divergence = at(divergence, tau)
    value, slope = both(divergence, *GRID)
    for i, (x, y) in enumerate(GRID.T):
        a, b = (np.float32(FLOOR) - z for z in (x, y))  # as rounded in fp32
        expected, expected_slope, term = map(float, exact(divergence, *(Decimal(float(z)) for z in (a, b))))
        # exp(-x) is off by x u, a logarithm by its size times u, and odds are raised to the power of alpha
        logs = abs(math.log(a / b)) + abs(math.log(a)) + abs(math.log(b))
        error = 8 * (2 + (a + b) / tau + logs) * getattr(divergence, "alpha", 1.0) * U
        assert abs(float(value[i]) - expected) <= error * max(term, 1e-30), (x, y)
        assert abs(float(slope[i]) - expected_slope) <= 4 * error * abs(expected_slope) + 1e-30, (x, y)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_where_both_agree_value_and_slope_are_exactly_zero(divergence, tau):
    agree = GRID[0] == GRID[1]
    for out in both(at(divergence, tau), *GRID):
        assert agree.sum() == len(LOGP) and not np.any(out[agree])


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_at_either_end_value_and_slope_are_finite(divergence, tau):
    ends = [0.0, 1e-6, -0.0, -1e-30, -1e-7, -1.0, -88.0, -104.0, -1e4, -1e6]
    for out in both(at(divergence, tau), *np.float32(list(itertools.product(ends, ends))).T):
        assert out.dtype == np.float32
        assert np.all(np.isfinite(out)) and np.any(out != 0)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_the_slope_points_to_the_teacher(divergence, tau):
    log_p, log_q = GRID
    _, slope = both(at(divergence, tau), *GRID)
    visible = np.exp(log_q / tau) > 1e-20  # the others have no slope that fp32 holds
    assert visible.sum() > 80
    np.testing.assert_array_equal(np.sign(slope)[visible], np.sign(log_q - log_p)[visible])


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_what_is_left_to_the_limit_falls_as_one_over_the_temperature(divergence):
    log_p, log_q = np.float32([-0.5, -2.0, -3.0, -1.0]), np.float32([-1.5, -0.5, -6.0, -1.2])
    limit, far, near = (np.array(both(at(divergence, tau), log_p, log_q)) for tau in (math.inf, 100.0, 1000.0))
    np.testing.assert_allclose((far - limit) / (near - limit), 10, rtol=0.15)  # the next term is of the order b / tau


def test_at_one_hundred_it_is_one_hundred_times_the_loss_of_alm_whose_slope_is_known():
    log_p, log_q = np.float32([-1.0, -8.0, -3.0]), np.float32([-2.0, -1.0, -3.5])
    P, Q = (np.exp(np.float64(x) / 100 - FLOOR / 100) for x in (log_p, log_q))
    cross_entropy = -(P * np.log(Q) + (1 - P) * np.log1p(-Q))
    entropy = -(P * np.log(P) + (1 - P) * np.log1p(-P))
    value, slope = both(ChunkKL(100.0), jnp.array(log_p), jnp.array(log_q))
    np.testing.assert_allclose(value / 100, cross_entropy - entropy, rtol=1e-5)
    np.testing.assert_allclose(slope / 100, (Q - P) / (1 - Q) / 100, rtol=1e-5)


def test_renyi_has_kl_in_its_middle():
    log_p, log_q = jnp.array([-0.5, -2.0, -3.0]), jnp.array([-1.5, -1.0, -6.0])
    for tau in (1.0, 10.0, math.inf):
        kl = both(ChunkKL(tau), log_p, log_q)
        around = [both(ChunkRenyi(tau, alpha), log_p, log_q) for alpha in (0.99, 1.01)]
        for middle, below, above in zip(kl, *around, strict=True):
            np.testing.assert_allclose((below + above) / 2, middle, rtol=1e-3)
            assert np.all(np.sign(above - middle) == -np.sign(below - middle))


def test_the_divergence_of_a_chunk_is_at_most_that_of_the_distributions_it_is_from():
    rng = np.random.default_rng(0)
    log_p, log_q = (special.log_softmax(rng.normal(0, 2, (50, 9)), axis=-1) for _ in range(2))
    value = ChunkKL(1.0)(log_p, log_q)
    whole = (np.exp(log_p) * (log_p - log_q)).sum(-1, keepdims=True)
    assert np.all(value <= whole * (1 + 64 * U))
    total_variation = ChunkTotalVariation(1.0)(log_p, log_q)
    np.testing.assert_allclose(total_variation.sum(-1), np.abs(np.exp(log_p) - np.exp(log_q)).sum(-1), atol=1e-5)


def test_the_teacher_gets_no_gradient():
    log_p, log_q = jnp.array([-1.0]), jnp.array([-2.0])
    for divergence in ALL:
        assert not np.any(jax.grad(lambda log_p, d=divergence: d(log_p, log_q).sum())(log_p))


@pytest.mark.parametrize("kind", [ChunkKL, ChunkReverseKL, ChunkTotalVariation, ChunkRenyi])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(kind, temperature):
    with pytest.raises(InputError, match=f"{kind.__name__}.temperature is {temperature}; it must be above 0"):
        kind(temperature)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.inf, math.nan])
def test_an_order_that_renyi_has_not_is_refused(alpha):
    with pytest.raises(InputError, match=f"ChunkRenyi.alpha is {alpha}"):
        ChunkRenyi(alpha=alpha)
