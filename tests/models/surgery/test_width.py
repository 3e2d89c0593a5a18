"""Width pruning: what carries nothing goes without a change, and each choice cuts the dimensions of its letter."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.surgery import width
from jaxdistill.models.transformer import Transformer

# 6 layers of some 8 reductions of at most 128 terms, each off by 2 sqrt(n) u; logits are as many times the states
FP32 = 6 * 8 * 2 * math.sqrt(128) * 2.0**-24


def layerwise(config, letter, size, seed=0):
    """Ascending indices that differ from layer to layer."""
    total = {"J": config.num_kv_heads, "F": config.mlp_width}[letter]
    return width.choose(np.random.default_rng(seed).random((6, total)), size)


def zeroed(params, names, mask_of):
    """Parameters with 0 where the mask of an array of these names is False."""

    def visit(path, x):
        name = path[-1].key
        return np.where(mask_of(name, x), x, 0).astype(x.dtype) if name in names else x

    return jax.tree_util.tree_map_with_path(visit, params)


def kept(ids, total):
    return np.stack([np.isin(np.arange(total), own) for own in ids])


def assert_same_logits(got, expected, vocab_size=37):
    got, expected = got[..., :vocab_size], expected[..., :vocab_size]
    np.testing.assert_allclose(got, expected, rtol=0, atol=FP32 * np.abs(expected).max())


def test_keeping_all_is_the_identity_to_the_bit(config, draw_host, assert_same):
    params = draw_host(config)
    everything = {
        "J": np.tile(np.arange(config.num_kv_heads), (6, 1)),
        "F": np.tile(np.arange(config.mlp_width), (6, 1)),
        "D": np.arange(config.width),
    }
    got_config, got = width.prune(config, params, everything)
    assert got_config == config
    assert_same(got, params)
    assert not any(np.shares_memory(a, b) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True))


def test_choosing_nothing_is_the_identity(config, draw_host, assert_same):
    got_config, got = width.prune(config, draw_host(config), {})
    assert got_config == config
    assert_same(got, draw_host(config))


@pytest.mark.parametrize("config", ["ours", "gemma2", "opt", "pythia", "mixtral"], indirect=True)
def test_a_model_without_channels_is_one_whose_channels_say_nothing(config, draw_host, logits_of):
    params, ids = draw_host(config), layerwise(config, "F", 7)
    mask_NF = kept(ids, config.mlp_width)
    mask = {"down_FD": mask_NF[:, :, None], "down_EFD": mask_NF[:, None, :, None]}
    silent = zeroed(params, mask, lambda name, x: mask[name])
    small_config, small = width.prune(config, params, {"F": ids})
    dims.check(small, small_config.dims)
    assert small_config.mlp_width == 7
    assert_same_logits(logits_of(small_config, small), logits_of(config, silent))


@pytest.mark.parametrize("config", ["ours", "gemma2", "opt", "pythia", "mixtral"], indirect=True)
def test_a_model_without_heads_is_one_whose_heads_say_nothing(config, draw_host, logits_of):
    params, ids = draw_host(config), layerwise(config, "J", 1)
    shared = config.num_heads // config.num_kv_heads
    mask_NH = np.repeat(kept(ids, config.num_kv_heads), shared, axis=1)
    silent = zeroed(params, {"o_HKD"}, lambda name, x: mask_NH[:, :, None, None])
    small_config, small = width.prune(config, params, {"J": ids})
    dims.check(small, small_config.dims)
    assert (small_config.num_kv_heads, small_config.num_heads) == (1, shared)
    assert_same_logits(logits_of(small_config, small), logits_of(config, silent))


WRITERS = {"embed_VD", "position_PD", "o_HKD", "o_bias_D", "down_FD", "down_EFD", "down_bias_D"}


@pytest.mark.parametrize("config", ["ours", "ours untied", "gemma2", "gemma3", "mixtral"], indirect=True)
def test_channels_of_the_stream_that_are_zero_go_without_a_change(config, draw_host, logits_of):
    config, ids = dataclasses.replace(config, norm_eps=1e-12), np.array([0, 3, 4, 7, 8, 9, 15])
    silent = zeroed(draw_host(config), WRITERS, lambda name, x: np.isin(np.arange(16), ids))
    small_config, small = width.prune(config, silent, {"D": ids})
    dims.check(small, small_config.dims)
    assert small_config.width == 7
    assert_same_logits(logits_of(small_config, small), logits_of(config, silent))


@pytest.mark.parametrize("config", ["opt", "pythia"], indirect=True)
def test_channels_of_the_stream_that_are_its_mean_go_without_a_change(config, draw_host, logits_of):
    """Every writer gives pairs of channels that cancel, so that the mean over channels is zero."""
    config, D = dataclasses.replace(config, norm_eps=1e-12), config.width
    ids = np.arange(D // 2)
    params = zeroed(draw_host(config), WRITERS, lambda name, x: np.isin(np.arange(D), ids))
    biases = {name for _, name in ((0, "norm_bias_D"), (1, "attention_norm_bias_D"), (2, "mlp_norm_bias_D"))}
    params = zeroed(params, biases, lambda name, x: np.isin(np.arange(D), ids))

    def cancel(path, x):
        if path[-1].key in WRITERS:
            x = x.copy()
            x[..., 1::2] = -x[..., ::2]
        return x

    params = jax.tree_util.tree_map_with_path(cancel, params)
    small_config, small = width.prune(config, params, {"D": ids})
    assert_same_logits(logits_of(small_config, small), logits_of(config, params))


def test_all_dimensions_can_be_pruned_at_once(config, draw_host, logits_of):
    choice = {
        "J": layerwise(config, "J", 1),
        "F": layerwise(config, "F", 5, seed=1),
        "D": np.arange(0, config.width, 2),
    }
    small_config, small = width.prune(config, draw_host(config), choice)
    dims.check(small, small_config.dims)
    assert small_config == width.prune_config(config, choice)
    assert np.all(np.isfinite(logits_of(small_config, small)))


def test_every_expert_can_have_channels_of_its_own(configs, draw_host):
    config, params = configs["mixtral"], draw_host(configs["mixtral"])
    ids = width.choose(np.random.default_rng(0).random((6, 5, 20)), 4)
    small_config, small = width.prune(config, params, {"F": ids})
    dims.check(small, small_config.dims)
    for n in range(6):
        for e in range(5):
            for name, axis in (("gate_EDF", 1), ("up_EDF", 1), ("down_EFD", 0)):
                own = params["layers"]["mlp"][name][n, e].take(ids[n, e], axis)
                np.testing.assert_array_equal(small["layers"]["mlp"][name][n, e], own)


def test_query_heads_stay_with_their_keys(configs, draw_host):
    config, ids = configs["ours"], np.array([[1], [0], [1], [1], [0], [0]])
    params = draw_host(config)["layers"]["attention"]
    small = width.prune(config, draw_host(config), {"J": ids})[1]["layers"]["attention"]
    for n, (group,) in enumerate(ids):
        np.testing.assert_array_equal(small["k_DJK"][n], params["k_DJK"][n][:, [group]])
        np.testing.assert_array_equal(small["q_DHK"][n], params["q_DHK"][n][:, [2 * group, 2 * group + 1]])
        np.testing.assert_array_equal(small["o_HKD"][n], params["o_HKD"][n][[2 * group, 2 * group + 1]])


def test_devices_and_shapes_give_what_the_host_gives(configs, draw_host):
    config = configs["gemma2"]
    choice = {"J": layerwise(config, "J", 1), "F": layerwise(config, "F", 5), "D": np.arange(0, 16, 3)}
    here = width.prune(config, draw_host(config), choice)[1]
    there = width.prune(config, jax.tree.map(jnp.asarray, draw_host(config)), choice)[1]
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(here))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=4 * 2.0**-24 * np.abs(b).max()), there, here
    )
    shapes = width.prune(config, jax.eval_shape(Transformer(config).init, jax.random.key(0)), choice)[1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), here)


def test_the_most_important_are_chosen_in_their_order_and_of_equals_the_first():
    assert width.choose([0.1, 5.0, 2.0, 5.0], 2).tolist() == [1, 3]
    assert width.choose([1.0, 1.0, 1.0], 2).tolist() == [0, 1]
    assert width.choose([[3, 1, 2], [0, 5, 4]], 2).tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"H": [[0]] * 6}, "H cannot be pruned: choose among J, F, D"),
        ({"D": [[0, 1]]}, r"the choice of D is int64 of the shape \[1, 2\]: give indices, \[kept\]"),
        ({"J": [0]}, r"the choice of J is int64 of the shape \[1\]: give indices, \[6, kept\]"),
        ({"F": np.zeros((6, 0), int)}, r"the choice of F is int64 of the shape \[6, 0\]: give indices, \[6, kept\]"),
        ({"D": [0.0, 1.0]}, r"the choice of D is float64 of the shape \[2\]: give indices"),
        ({"D": 3}, r"the choice of D is int64 of the shape \[\]: give indices"),
        ({"D": [0, 16]}, "the choice of D must be ascending indices below 16, each of them once"),
        ({"D": [1, 1]}, "the choice of D must be ascending indices below 16, each of them once"),
        ({"J": [[1, 0]] * 6}, "the choice of J must be ascending indices below 2, each of them once"),
    ],
    ids=str,
)
def test_a_choice_that_does_not_fit_is_refused_in_one_sentence(configs, choice, message):
    with pytest.raises(InputError, match=f"^{message}"):
        width.prune_config(configs["ours"], choice)


@pytest.mark.parametrize(
    ("importance", "size", "message"),
    [
        ([1.0, 2.0], 3, "3 of 2 are to be kept: keep at least 1 and at most all"),
        ([1.0, 2.0], 0, "0 of 2 are to be kept: keep at least 1 and at most all"),
        ([1.0, np.nan], 1, "an importance that is not finite orders nothing: measure it again"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_in_one_sentence(importance, size, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        width.choose(importance, size)
