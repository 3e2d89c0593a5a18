"""Rows that are made: means, draws and weighted sums of the old ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.models.transplant.fills import Mean, Mixture, Normal

U = 2.0**-24  # unit roundoff of fp32


@pytest.fixture(params=[np, jnp], ids=["numpy", "jax"])
def xp(request):
    return request.param


def test_the_mean_is_that_of_every_dimension(xp, plain):
    got = np.asarray(Mean()(xp, xp.asarray(plain), 3))
    expected = plain.astype(np.float64).mean(0)
    assert got.shape == (3, 16)
    np.testing.assert_allclose(got, np.tile(expected, (3, 1)), rtol=0, atol=38 * U * np.abs(plain).max())


def test_draws_have_the_mean_and_the_variance_of_the_old_rows_in_every_dimension(xp, plain):
    num = 40_000
    got = np.asarray(Normal(seed=1)(xp, xp.asarray(plain), num), np.float64)
    mean, std = plain.astype(np.float64).mean(0), plain.astype(np.float64).std(0)
    score = np.abs(got.mean(0) - mean) / (std / np.sqrt(num))  # of 16 standard normals
    assert score.max() < 5
    score = np.abs(got.var(0) / std**2 - 1) / np.sqrt(2 / num)
    assert score.max() < 5


def test_draws_are_independent_from_dimension_to_dimension(plain):
    got = np.corrcoef(np.asarray(Normal()(jnp, jnp.asarray(plain), 40_000)).T)
    assert np.abs(got - np.eye(16)).max() < 5 / np.sqrt(40_000)


def test_draws_depend_on_the_seed_and_not_on_where_the_rows_are(plain):
    first, other = Normal(seed=1)(np, plain, 4), Normal(seed=2)(np, plain, 4)
    on_device = np.asarray(Normal(seed=1)(jnp, jnp.asarray(plain), 4))
    assert np.abs(first - other).max() > 0.1
    np.testing.assert_allclose(first, on_device, rtol=0, atol=80 * U * np.abs(plain).max())


def test_a_mixture_is_the_matrix_of_its_weights_times_the_old_rows(xp, plain):
    rng = np.random.default_rng(0)
    parts = [(rng.integers(37, size=n), rng.normal(size=n)) for n in (1, 5, 3, 2)]
    matrix = np.zeros((4, 37))
    for row, (ids, weights) in enumerate(parts):
        np.add.at(matrix[row], ids, weights.astype(np.float32))
    got = np.asarray(Mixture.of(parts, Mean())(xp, xp.asarray(plain), 4))
    bound = 6 * U * 5 * np.abs(plain).max() * max(np.abs(weights).max() for _, weights in parts)
    np.testing.assert_allclose(got, matrix @ plain.astype(np.float64), rtol=0, atol=bound)


def test_a_row_without_weights_takes_the_rest(xp, plain):
    rows = xp.asarray(plain)
    got = np.asarray(Mixture.of([((3,), (1.0,)), ((), ()), ((4, 5), (0.5, 0.5))], Mean())(xp, rows, 3))
    np.testing.assert_array_equal(got[1], np.asarray(Mean()(xp, rows, 1))[0])
    np.testing.assert_array_equal(got[0], plain[3])
    np.testing.assert_array_equal(got[2], (plain[4] + plain[5]) / 2)


@pytest.mark.parametrize("fill", [Mean(), Normal(), Mixture.of([], Mean())], ids=["mean", "normal", "mixture"])
def test_no_rows_can_be_made(xp, plain, fill):
    assert fill(xp, xp.asarray(plain), 0).shape == (0, 16)


def test_a_mixture_for_other_tokens_is_refused(plain):
    mixture = Mixture.of([((3,), (1.0,))], Mean())
    with pytest.raises(InputError, match=r"^a mixture for 1 tokens, and 2 have no copy"):
        mixture(np, plain, 2)
    with pytest.raises(InputError, match=r"^a mixture of ids beyond the 3 old ones"):
        mixture(np, plain[:3], 1)
