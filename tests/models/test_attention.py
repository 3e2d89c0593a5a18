"""Attention with a soft-cap, which is our own code, and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import attention


def random_qkv(H=4, J=2, L=7, K=6):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, L, heads, K)), jnp.float32) for heads in (H, J, J)]


@pytest.mark.parametrize(("H", "J"), [(4, 4), (4, 2), (4, 1)])
def test_without_a_softcap_it_is_the_attention_of_jax(H, J):
    q, k, v = random_qkv(H, J)
    segment_BL = jnp.asarray([[1, 1, 1, 2, 2, 2, 0], [1] * 7])
    mask = attention.causal_mask(segment_BL, 7, window=3)
    ours = attention.mix(attention.probabilities(q, k, mask, 0.3, None), v)
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=0.3, implementation="xla")
    np.testing.assert_allclose(ours, expected, rtol=0, atol=8 * 2.0**-24 * np.abs(expected).max() * 7)


def test_a_softcap_bounds_every_score():
    q, k, _ = random_qkv()
    mask, cap = attention.causal_mask(None, 7), 0.5
    p_BHLM = np.asarray(attention.probabilities(100 * q, k, mask, 1.0, cap), np.float64)
    seen = np.arange(1, 8)[:, None]
    inside = np.broadcast_to(np.asarray(mask)[0, 0], p_BHLM.shape)
    # scores lie within +-cap, so no probability is further from uniform than exp(2 cap)
    assert np.all(np.where(inside, p_BHLM * seen, 1) <= np.exp(2 * cap) * (1 + 1e-6))
    assert np.all(np.where(inside, p_BHLM * seen, 1) >= np.exp(-2 * cap) * (1 - 1e-6))
    assert np.all(p_BHLM[~inside] == 0)


def test_a_large_softcap_changes_nothing_and_a_small_one_does():
    q, k, _ = random_qkv()
    mask = attention.causal_mask(None, 7)
    plain, large, small = (attention.probabilities(q, k, mask, 0.4, cap) for cap in (None, 1e4, 0.1))
    np.testing.assert_allclose(large, plain, atol=1e-5)  # tanh(z / c) c = z - z^3 / 3c^2
    assert np.abs(small - plain).max() > 0.05


@pytest.mark.parametrize("window", [None, 1, 3, 20])
def test_the_mask_is_the_one_that_loops_write(window):
    segment_BL = np.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3]])
    mask = np.asarray(attention.causal_mask(jnp.asarray(segment_BL), 6, window))
    assert mask.shape == (2, 1, 6, 6) and mask.dtype == bool
    for b, q, k in np.ndindex(2, 6, 6):
        near = window is None or q - k < window
        assert mask[b, 0, q, k] == (k <= q and near and segment_BL[b, q] == segment_BL[b, k])
