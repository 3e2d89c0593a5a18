"""Mixtures of experts against loops over tokens and experts in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdistill.models.design import Design, Experts
from jaxdistill.models.moe import ExpertMLP, choose, load_balance
from jaxdistill.models.variant import Variant
from jaxdistill.shard import Shard

CONFIG = Variant(11, 1, 8, 2, 4, 12, design=Design(mlp=Experts(5, 2)))
FP32 = 4 * 2 * math.sqrt(12) * 2.0**-24  # router, gate and up, down, and the sum over a token's experts


def layer(experts):
    config = dataclasses.replace(CONFIG, design=Design(mlp=experts))
    return ExpertMLP(config, rngs=nnx.Rngs(0))


def by_loops(module, x_BLD):
    """Every token through each of its experts, one after the other."""
    weights = {
        name: np.asarray(getattr(module, name)[...], np.float64)
        for name in ("router_DE", "gate_EDF", "up_EDF", "down_EFD")
    }
    out = np.zeros(x_BLD.shape)
    for b, t in np.ndindex(x_BLD.shape[:2]):
        x = np.asarray(x_BLD[b, t], np.float64)
        z = x @ weights["router_DE"]
        p = np.exp(z - z.max())
        p /= p.sum()
        best = np.argsort(-p)[: module.design.active]
        total = p[best].sum() if module.design.normalise else 1.0
        for e in best:
            gate = x @ weights["gate_EDF"][e]
            out[b, t] += (
                p[e] / total * ((gate / (1 + np.exp(-gate)) * (x @ weights["up_EDF"][e])) @ weights["down_EFD"][e])
            )
    return out


@pytest.mark.parametrize(
    "experts", [Experts(5, 2), Experts(5, 2, normalise=False), Experts(5, 5), Experts(1, 1)], ids=str
)
def test_every_token_goes_through_its_own_experts_and_none_is_dropped(experts):
    module, x_BLD = layer(experts), jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 8)), jnp.float32)
    out_BLD, seen = module(x_BLD, Shard())
    expected = by_loops(module, x_BLD)
    np.testing.assert_allclose(out_BLD, expected, rtol=0, atol=FP32 * np.abs(expected).max())
    assert seen["router"].shape == (2, 7, experts.num)


def test_tokens_that_all_choose_one_expert_are_all_served():
    module = layer(Experts(5, 1))
    module.router_DE[...] = module.router_DE[...].at[:, 3].set(50.0)
    x_BLD = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, size=(2, 7, 8)), jnp.float32)  # above zero: 3 wins
    out_BLD, seen = module(x_BLD, Shard())
    assert np.all(np.argmax(seen["router"], axis=-1) == 3)
    expected = by_loops(module, x_BLD)
    np.testing.assert_allclose(out_BLD, expected, rtol=0, atol=FP32 * np.abs(expected).max())


def test_a_token_does_not_depend_on_the_others():
    module, x_BLD = layer(Experts(5, 2)), jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 8)), jnp.float32)
    alone = module(x_BLD[:1, 2:3], Shard())[0]
    together = module(x_BLD, Shard())[0]
    np.testing.assert_allclose(alone[0, 0], together[0, 2], rtol=0, atol=FP32 * np.abs(together).max())


def test_the_weights_of_the_chosen_add_up_to_one_where_they_are_normalised():
    logits_TE = jnp.asarray(np.random.default_rng(0).normal(size=(9, 5)), jnp.float32)
    expert, weight = choose(logits_TE, Experts(5, 2))
    np.testing.assert_allclose(weight.sum(-1), 1, rtol=4 * 2.0**-24)
    plain_expert, plain = choose(logits_TE, Experts(5, 2, normalise=False))
    np.testing.assert_array_equal(expert, plain_expert)
    p_TE = jax.nn.softmax(logits_TE)
    np.testing.assert_array_equal(plain, np.take_along_axis(np.asarray(p_TE), np.asarray(expert), -1))


def test_load_balance_is_the_number_of_active_experts_where_all_are_alike_and_grows_where_not():
    rotated = np.stack([np.roll([4.0, 2.0, 0, 0, 0], shift) for shift in range(5)])[None]  # every expert twice in top 2
    np.testing.assert_allclose(load_balance(jnp.asarray(rotated), jnp.ones((1, 5)), 2), 2, rtol=1e-6)
    one = jnp.asarray(np.tile([60.0, 20.0, 0, 0, 0], (1, 5, 1)))
    np.testing.assert_allclose(load_balance(one, jnp.ones((1, 5)), 1), 5, rtol=1e-6)  # E: all to one of five


def test_tokens_without_weight_do_not_count_for_the_balance():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 6, 5)), jnp.float32)
    weight = jnp.asarray([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], jnp.float32)
    np.testing.assert_allclose(
        load_balance(logits, weight, 2), load_balance(logits[:1, :4], jnp.ones((1, 4)), 2), rtol=1e-6
    )
    assert np.isfinite(load_balance(logits, jnp.zeros((2, 6)), 2))
