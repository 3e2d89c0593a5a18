"""Merged layers: averages, LaCo's equation, and LaCo's search."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.families import llama
from jaxdistill.models.surgery import layers, merge
from jaxdistill.models.surgery.truncate import truncate
from jaxdistill.models.transformer import Transformer

U = 2.0**-24  # the relative error of one fp32 operation


def stacked(params):
    return {path: x for path, _, x in dims.leaves(params) if path.startswith("layers/")}


def test_an_average_is_the_mean_of_its_layers(config, draw_host):
    params, groups = draw_host(config), layers.blocks((0, 1, 4), 6)
    small_config, small = merge.average(config, params, groups)
    dims.check(small, small_config.dims)
    for path, x in stacked(params).items():
        exact = np.stack([x[list(group)].astype(np.float64).mean(0) for group in groups])
        bound = 4 * U * np.abs(x).max()  # sums of at most three terms, and a division
        np.testing.assert_allclose(stacked(small)[path], exact, rtol=0, atol=bound)


def test_groups_of_one_layer_are_a_truncation_to_the_bit(config, draw_host, assert_same):
    params = draw_host(config)
    got_config, got = merge.average(config, params, [(0,), (3,), (5,)])
    expected_config, expected = truncate(config, params, (0, 3, 5))
    assert got_config == expected_config
    assert_same(got, expected)


def test_the_average_of_equal_layers_is_the_layer(configs, draw_host):
    params = draw_host(configs["ours"])
    params["layers"] = jax.tree.map(lambda x: np.repeat(x[:1], 6, axis=0), params["layers"])
    _, small = merge.average(configs["ours"], params, [(0, 1), (2, 3, 4, 5)])
    for path, x in stacked(params).items():
        np.testing.assert_array_equal(stacked(small)[path], x[:2])  # sums of 2 and 4 equal numbers are exact


def test_merged_layers_keep_their_dtype(configs, draw_params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw_params(configs["ours"]))
    for params in (half, jax.tree.map(np.asarray, half)):
        merged = (
            merge.average(configs["ours"], params, [(0, 1, 2)])[1],
            merge.merge_run(configs["ours"], params, 0, 3)[1],
        )
        assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}


def test_a_merged_run_is_its_first_layer_and_the_differences_of_the_others_to_it(config, draw_host):
    params = draw_host(config)
    small_config, small = merge.merge_run(config, params, 1, 4)
    dims.check(small, small_config.dims)
    assert small_config.num_layers == 4
    for path, x in stacked(params).items():
        got, exact = stacked(small)[path], x.astype(np.float64)
        np.testing.assert_array_equal(got[[0, 2, 3]], x[[0, 4, 5]])
        if "norm" in path:
            np.testing.assert_array_equal(got[1], x[1])
        else:
            bound = 8 * U * np.abs(x).max() * 5  # four operations on numbers of at most five times the largest
            np.testing.assert_allclose(got[1], exact[2] + exact[3] - exact[1], rtol=0, atol=bound)


def test_a_run_of_one_layer_merges_to_itself(config, draw_host, assert_same):
    params = draw_host(config)
    assert_same(merge.merge_run(config, params, 2, 3)[1], params)


def test_windows_are_those_of_the_first_layer_of_a_run(configs, draw_host):
    config = configs["gemma3"]  # windows on 0, 1, 3 and 4
    assert merge.merge_run(config, draw_host(config), 2, 5)[0].design.attention.window.layers == (0, 1)
    assert merge.average(config, draw_host(config), [(0, 2), (2, 0)])[0].design.attention.window.layers == (0,)


def test_merging_works_on_devices_and_on_shapes_as_on_the_host(configs, draw_host, draw_params):
    config = configs["mixtral"]
    for surgery in (
        lambda p: merge.merge_run(config, p, 1, 4)[1],
        lambda p: merge.average(config, p, [(0, 1, 2), (3, 4, 5)])[1],
    ):
        here, there = surgery(draw_host(config)), surgery(draw_params(config))
        bound = 8 * U * 5 * max(np.abs(x).max() for x in jax.tree.leaves(here))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=0, atol=bound), here, there)  # noqa: B023
        shapes = surgery(jax.eval_shape(Transformer(config).init, jax.random.key(0)))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), here)


@pytest.mark.parametrize("name", ["ours", "pythia"])
def test_a_model_whose_layers_do_nothing_can_be_merged_without_a_change(configs, name, draw_params, logits_of):
    """Layers that add nothing are equal, so that every run of them merges to one that adds nothing."""
    params = draw_params(config := configs[name])
    silent = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if path[-1].key in {"o_HKD", "o_bias_D", "down_FD", "down_bias_D"} else x, params
    )
    got, expected = logits_of(*merge.merge_run(config, silent, 0, 6)), logits_of(config, silent)
    bound = 4 * math.sqrt(config.width) * U  # a norm and a product of so many terms
    np.testing.assert_allclose(got, expected, rtol=0, atol=bound * np.abs(expected[..., :37]).max())


class Log:
    """A similarity that accepts candidates of the depths it is told, and remembers all that it was asked."""

    def __init__(self, accepted):
        self.accepted, self.asked = accepted, []

    def __call__(self, config, params):
        self.asked.append(config.num_layers)
        return 1.0 if len(self.asked) - 1 in self.accepted else 0.0


TEN = llama.llama(16, 10, 8, 2, 1, 8)


@pytest.mark.parametrize(
    ("accepted", "settings", "asked", "keep"),
    [
        ((), {}, [8] * 7, tuple(range(10))),
        ((0,), {}, [8] + [6] * 6, (0, 1, 2, 3, 4, 5, 6, 9)),
        ((0, 1), {"interval": 2}, [8, 6, 4, 4, 4], (0, 1, 2, 3, 4, 9)),
        (range(9), {"interval": 3}, [8, 6, 4], (0, 3, 6, 9)),
        ((0,), {"lowest": 4, "highest": 8}, [8, 6], (0, 1, 2, 3, 4, 5, 8, 9)),
        (range(9), {"size": 5}, [6, 4, 3, 2, 1], (0,)),
    ],
    ids=["none taken", "first taken", "interval", "all taken", "within bounds", "runs that meet the end"],
)
def test_runs_are_tried_from_the_last_layers_to_the_first(accepted, settings, asked, keep, draw_host):
    log = Log(accepted)
    settings = {"size": 3} | settings
    config, params, kept = merge.collapse(TEN, draw_host(TEN), log, threshold=0.5, **settings)
    assert log.asked == asked and kept == keep
    assert config.num_layers == len(kept)
    dims.check(params, config.dims)


def test_a_merge_must_be_above_the_threshold(draw_host):
    assert merge.collapse(TEN, draw_host(TEN), lambda *_: 0.5, size=3, threshold=0.5)[0] == TEN


def test_what_a_collapse_gives_is_the_merges_that_it_took(draw_host, assert_same):
    params = draw_host(TEN)
    config, got, _ = merge.collapse(TEN, params, Log((0, 1)), size=3, threshold=0.5, interval=3)
    assert_same(got, merge.merge_run(*merge.merge_run(TEN, params, 6, 9), 3, 6)[1])
    assert config.num_layers == 6


def test_a_collapse_that_takes_nothing_gives_fresh_arrays(draw_host, assert_same):
    params = draw_host(TEN)
    _, got, _ = merge.collapse(TEN, params, Log(()), size=3, threshold=0.5)
    assert_same(got, params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True):
        assert not np.shares_memory(a, b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: merge.average(TEN, p, [(0,), ()]), "groups of layers to average must not be empty, and name layers"),
        (lambda p: merge.average(TEN, p, []), "groups of layers to average must not be empty, and name layers"),
        (lambda p: merge.average(TEN, p, [(0, 10)]), "groups of layers to average must not be empty, and name layers"),
        (lambda p: merge.merge_run(TEN, p, 8, 11), "layers 8 to 10 cannot be merged, of a model with 10 layers"),
        (lambda p: merge.merge_run(TEN, p, 3, 3), "layers 3 to 2 cannot be merged, of a model with 10 layers"),
        (lambda p: merge.collapse(TEN, p, Log(()), size=1, threshold=0.5), "LaCo merges runs of 2 layers or more, 1 "),
        (
            lambda p: merge.collapse(TEN, p, Log(()), size=2, threshold=0.5, highest=10),
            "LaCo merges runs .* highest=10",
        ),
    ],
)
def test_a_merge_that_makes_no_sense_is_refused_in_one_sentence(call, message, draw_host):
    with pytest.raises(InputError, match=f"^{message}"):
        call(draw_host(TEN))
