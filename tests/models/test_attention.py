"""Attention in blocks of queries, soft-caps and masks; the oracle is the definition in float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxdistill.models import attention
from jaxdistill.models.transformer import Config, Transformer

BLOCKS_OF = (7, 64, 150, 530)  # lengths: less than a block, one, three of which the last is short, eight larger ones


def random_qkv(H=4, J=2, L=7, K=6):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, L, heads, K)), jnp.float32) for heads in (H, J, J)]


def definition(q, k, v, mask, scale, softcap=None):
    """softmax(softcap(scale q . k)) v and the bound on what fp32 may make of it."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    repeats = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, repeats, axis=2), np.repeat(v, repeats, axis=2)
    z = scale * np.einsum("blhk,bmhk->bhlm", q, k)
    largest = scale * np.einsum("blhk,bmhk->bhlm", np.abs(q), np.abs(k)).max()
    if softcap is not None:
        z = softcap * np.tanh(z / softcap)
    p = scipy.special.softmax(np.where(np.asarray(mask), z, -np.inf), axis=-1)
    # a score is off by K roundings, which enter the ratio twice; the two sums over M add M roundings each
    bound = 2.0**-24 * (2 * (q.shape[-1] + 4) * largest + 2 * k.shape[1] + 8) * np.abs(v).max()
    return np.einsum("bhlm,bmhk->blhk", p, v), bound


@pytest.mark.parametrize("L", BLOCKS_OF)
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_blocks_of_queries_give_the_definition_for_any_length(L, softcap):
    q, k, v = random_qkv(L=L)
    mask = attention.causal_mask(None, L)
    expected, bound = definition(q, k, v, mask, 0.3, softcap)
    np.testing.assert_allclose(attention.attend(q, k, v, mask, 0.3, softcap), expected, rtol=0, atol=bound)


@pytest.mark.parametrize(("H", "J"), [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_heads_share_keys_in_groups_of_neighbours(H, J):
    q, k, v = random_qkv(H, J, L=70)
    mask = attention.causal_mask(None, 70)
    expected, bound = definition(q, k, v, mask, 0.3)
    np.testing.assert_allclose(attention.attend(q, k, v, mask, 0.3), expected, rtol=0, atol=bound)


def test_blocks_keep_to_windows_and_segments():
    q, k, v = random_qkv(L=150)
    segment_BL = jnp.asarray(np.sort(np.random.default_rng(1).integers(5, size=(2, 150))))
    mask = attention.causal_mask(segment_BL, 150, window=9)
    expected, bound = definition(q, k, v, mask, 0.3)
    np.testing.assert_allclose(attention.attend(q, k, v, mask, 0.3), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("last", [1, 5, 80])
def test_the_last_queries_alone_get_what_they_get_among_all(last):
    q, k, v = random_qkv(L=150)
    mask = attention.causal_mask(None, 150)
    expected, bound = definition(q, k, v, mask, 0.3)
    alone = attention.attend(q[:, -last:], k, v, mask[:, :, -last:], 0.3)
    np.testing.assert_allclose(alone, expected[:, -last:], rtol=0, atol=bound)


def test_queries_from_the_middle_get_what_they_get_among_all():
    q, k, v = random_qkv(L=150)
    mask, middle = attention.causal_mask(None, 150), slice(20, 110)
    expected, bound = definition(q, k, v, mask, 0.3)
    alone = attention.attend(q[:, middle], k, v, mask[:, :, middle], 0.3, last=False)
    np.testing.assert_allclose(alone, expected[:, middle], rtol=0, atol=bound)


def test_a_block_does_not_read_the_keys_behind_it():
    q, k, v = random_qkv(L=150)
    end, mask = attention.BLOCK, attention.causal_mask(None, 150)
    spoilt = attention.attend(q, k.at[:, end:].set(np.nan), v.at[:, end:].set(np.nan), mask, 0.3)
    assert np.isfinite(spoilt[:, :end]).all() and np.isnan(spoilt[:, end:]).all()


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_blocks_have_the_gradient_of_the_definition(softcap):
    inputs, mask, rng = random_qkv(L=70), attention.causal_mask(None, 70), np.random.default_rng(2)
    w, directions = rng.normal(size=inputs[0].shape), [rng.normal(size=x.shape) for x in inputs]

    def along(step):
        moved = (np.asarray(x, np.float64) + step * way for x, way in zip(inputs, directions, strict=True))
        return (definition(*moved, mask, 0.3, softcap)[0] * w).sum()

    gradients = jax.grad(lambda qkv: (attention.attend(*qkv, mask, 0.3, softcap) * w).sum())(inputs)
    terms = np.concatenate([np.ravel(g * way) for g, way in zip(gradients, directions, strict=True)]).astype(np.float64)
    # central differences are exact to 1e-9 here; fp32 rounds each of the terms, which are sums over M
    expected, bound = (along(1e-5) - along(-1e-5)) / 2e-5, 70 * 2.0**-24 * np.abs(terms).sum()
    np.testing.assert_allclose(terms.sum(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_implementations_of_a_model_agree_and_the_default_of_a_cpu_is_blocks(dtype):
    config = Config(vocab_size=50, num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_size=8, mlp_width=48)
    model = Transformer(config, dtype=dtype)
    params, tokens_BL = model.init(jax.random.key(0)), jax.random.randint(jax.random.key(1), (2, 70), 0, 50)
    h = {
        name: np.asarray(dataclasses.replace(model, implementation=name).hidden(params, tokens_BL)[0], np.float64)
        for name in (None, "blocks", "xla")
    }
    np.testing.assert_array_equal(h[None], h["blocks"])
    assert np.abs(h["blocks"] - h["xla"]).max() <= 70 * jnp.finfo(dtype).eps / 2 * np.abs(h["xla"]).max()
    assert np.any(h["blocks"] != h["xla"])


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_the_probabilities_are_those_that_mix_the_values(softcap):
    q, k, v = random_qkv(L=70)
    mask = attention.causal_mask(None, 70, window=30)
    p_BHLM = np.asarray(attention.probabilities(q, k, mask, 0.3, softcap), np.float64)
    expected, bound = definition(q, k, v, mask, 0.3, softcap)
    np.testing.assert_allclose(p_BHLM.sum(axis=-1), 1, rtol=0, atol=70 * 2.0**-24)
    mixed = np.einsum("bhlm,bmhk->blhk", p_BHLM, np.repeat(np.asarray(v, np.float64), 2, axis=2))
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=bound)


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
