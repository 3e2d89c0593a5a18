"""Norms against their definitions in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import norms
from jaxdistill.models.design import LayerNorm, RMSNorm

RNG = np.random.default_rng(0)
X = (3 + 5 * RNG.normal(size=(4, 32))).astype(np.float32)
GAIN, BIAS = (RNG.normal(size=32).astype(np.float32) for _ in range(2))


def test_an_rms_norm_divides_by_the_root_mean_square():
    expected = X / np.sqrt((X.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-3) * GAIN
    got = norms.apply(X, jnp.asarray(GAIN), None, RMSNorm(), 1e-3)
    np.testing.assert_allclose(got, expected, rtol=2 * np.sqrt(32) * 2.0**-24)


def test_with_a_unit_offset_the_parameter_is_the_gain_less_one():
    got = norms.apply(X, jnp.asarray(GAIN), None, RMSNorm(unit_offset=True), 1e-3)
    np.testing.assert_array_equal(got, norms.apply(X, jnp.asarray(GAIN) + 1, None, RMSNorm(), 1e-3))


def test_a_layer_norm_subtracts_the_mean_and_adds_the_bias():
    x = X.astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * GAIN + BIAS
    got = norms.apply(X, jnp.asarray(GAIN), jnp.asarray(BIAS), LayerNorm(), 1e-3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=4 * np.sqrt(32) * 2.0**-24 * np.abs(X).max())


@pytest.mark.parametrize("design", [RMSNorm(), RMSNorm(unit_offset=True), LayerNorm()], ids=str)
def test_a_fresh_norm_has_the_gain_one_and_no_bias(design):
    params = norms.fresh("norm", "D", 32, design)
    got = norms.apply(X, params["norm_D"], params.get("norm_bias_D"), design, 1e-6)
    centred = X - X.mean(-1, keepdims=True) if isinstance(design, LayerNorm) else X
    np.testing.assert_allclose((np.asarray(got) ** 2).mean(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(got / centred, np.broadcast_to((got / centred)[:, :1], got.shape), rtol=1e-4)


def test_norms_compute_in_fp32_and_return_the_dtype_of_their_input():
    x = jnp.asarray(X, jnp.bfloat16)
    got = norms.apply(x, jnp.asarray(GAIN), jnp.asarray(BIAS), LayerNorm(), 1e-3)
    exact = norms.apply(x.astype(jnp.float32), jnp.asarray(GAIN), jnp.asarray(BIAS), LayerNorm(), 1e-3)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))
