"""A truncated model is the model with layers skipped, shares nothing with it, and takes its moments along."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models import norms, rotary
from jaxdistill.models.attention import View, causal_mask
from jaxdistill.models.block import Block
from jaxdistill.models.design import Rotary
from jaxdistill.models.families import llama
from jaxdistill.models.surgery import patterns
from jaxdistill.models.surgery.truncate import config_of_layers, truncate, truncate_tree
from jaxdistill.models.transformer import Transformer
from jaxdistill.optim import AdamW
from jaxdistill.shard import Shard
from jaxdistill.step import init_state

KEEP = (0, 1, 4)
# 3 layers of some 8 reductions of at most 128 terms, each off by 2 sqrt(n) u
FP32 = 3 * 8 * 2 * math.sqrt(128) * 2.0**-24


def host(tree):
    return jax.tree.map(np.asarray, tree)


def one_layer(config, params, n, x_BLD):
    """Layer n of a model on a stream, by itself."""
    L, design = x_BLD.shape[1], config.design
    window, position = design.attention.window, design.position
    is_local = window is not None and (window.layers is None or n in window.layers)
    angles = None
    if isinstance(position, Rotary):
        own = is_local and position.local_base is not None
        base, scaling = (position.local_base, None) if own else (config.rope_base, position.scaling)
        angles = rotary.angles(jnp.arange(L)[None], config.rotary_size, base, scaling)
    block = Block(config, rngs=nnx.Rngs(0))
    state = nnx.state(block)
    nnx.replace_by_pure_dict(state, jax.tree.map(lambda x: x[n], params["layers"]))
    nnx.update(block, state)
    return block(x_BLD, View(causal_mask(None, L, window.size if is_local else None), angles), Shard())[0]


def test_a_truncated_model_is_the_model_with_layers_skipped(config, draw_params, tokens_BL):
    params = draw_params(config)
    small_config, small = truncate(config, params, KEEP)

    def skipping(params):
        x_BLD = Transformer(config)._embed(params, tokens_BL, jnp.broadcast_to(jnp.arange(9), (2, 9)))
        streams = [x_BLD := one_layer(config, params, n, x_BLD) for n in KEEP]
        norm = functools.partial(norms.apply, design=config.design.norm, eps=config.norm_eps)
        return norm(x_BLD, params["norm_D"], params.get("norm_bias_D")), dict(enumerate(streams))

    got = jax.jit(lambda p: Transformer(small_config).hidden(p, tokens_BL, keep=(0, 1, 2)))(small)
    expected = jax.jit(skipping)(params)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=FP32 * np.abs(b).max())


def test_layers_are_cut_and_everything_else_is_copied(config, draw_host):
    params = draw_host(config)
    _, small = truncate(config, params, KEEP)
    assert small.keys() == params.keys()
    got = {path: x for path, _, x in dims.leaves(small)}
    for path, _, x in dims.leaves(params):
        np.testing.assert_array_equal(got[path], x[list(KEEP)] if path.startswith("layers/") else x)


def test_the_configuration_describes_the_truncated_parameters(config, draw_host):
    small_config, small = truncate(config, draw_host(config), KEEP)
    dims.check(small, small_config.dims)
    shapes = jax.eval_shape(Transformer(small_config).init, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(small)
    assert dataclasses.replace(small_config, num_layers=6, **_design(config)) == config


def _design(config):
    return {"design": config.design} if "design" in {field.name for field in dataclasses.fields(config)} else {}


def test_keeping_all_layers_is_the_identity(config, draw_host, assert_same):
    params = draw_host(config)
    same_config, same = truncate(config, params, range(6))
    assert same_config == config
    assert_same(same, params)


def test_parameters_are_linear_in_the_depth(config):
    sizes = [config_of_layers(config, range(n)).num_params_total for n in range(1, 7)]
    assert len(set(np.diff(sizes))) == 1 and sizes[1] > sizes[0]


@pytest.mark.parametrize(
    ("name", "keep", "local"),
    [("gemma2", (0, 2, 4), (0, 1, 2)), ("gemma2", (0, 3, 4, 5), (0, 2)), ("gemma2", (1, 5), ()),
     ("gemma3", (0, 2, 4), (0, 2)), ("mistral", (0, 5), None)],
)  # fmt: skip
def test_windows_follow_their_layers(configs, name, keep, local):
    assert config_of_layers(configs[name], keep).design.attention.window.layers == local


def test_a_tree_on_the_host_stays_there_and_is_cut_alike(config, draw_params, assert_same):
    params = draw_params(config)
    _, on_host = truncate(config, host(params), KEEP)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(on_host))
    assert_same(on_host, truncate(config, params, KEEP)[1])


def test_a_tree_on_the_host_shares_no_memory_with_what_it_was_cut_from(config, draw_host):
    params = draw_host(config)
    for keep in (KEEP, tuple(range(6))):
        small = truncate(config, params, keep)[1]
        for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(params), strict=True):
            assert not np.shares_memory(a, b)


@pytest.mark.parametrize("config", ["ours", "ours untied", "opt"], indirect=True)
@pytest.mark.parametrize("keep", [KEEP, tuple(range(6))], ids=["some", "all"])
def test_a_student_can_be_donated_and_its_teacher_lives(config, draw_params, keep):
    params = draw_params(config)
    before = host(jax.tree.map(jnp.copy, params))
    _, small = truncate(config, params, keep)
    held = jax.tree.leaves(small)
    step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    jax.block_until_ready(step(small))
    assert all(x.is_deleted() for x in held)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_a_model_of_70_billion_parameters_is_cut_without_memory():
    config = llama.llama(128_256, 80, 8192, 64, 8, 28_672)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    small_config, small = truncate(config, shapes, patterns.every_nth(80))
    assert config.num_params_total > 70e9 and small_config.num_layers == 41
    dims.check(small, small_config.dims)
    assert {type(x) for x in jax.tree.leaves(small)} == {jax.ShapeDtypeStruct}
    traced = jax.eval_shape(lambda p: truncate(config, p, patterns.every_nth(80))[1], shapes)
    assert [x.shape for x in jax.tree.leaves(traced)] == [x.shape for x in jax.tree.leaves(small)]


def test_a_state_keeps_the_moments_of_the_kept_layers_to_the_bit(config):
    shapes = jax.eval_shape(lambda: init_state(Transformer(config), AdamW(), jax.random.key(0)))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape) if x.ndim else 5, x.dtype), shapes)
    small = truncate_tree(state, KEEP, 6)
    assert int(small.step) == 5 and int(small.opt[1].count) == 5
    for old, new in ((state.opt[1].mu, small.opt[1].mu), (state.opt[1].nu, small.opt[1].nu)):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(b, a[np.array(KEEP)]), old["layers"], new["layers"])
        np.testing.assert_array_equal(new["embed_VD"], old["embed_VD"])
        np.testing.assert_array_equal(new["norm_D"], old["norm_D"])
    student = Transformer(config_of_layers(config, KEEP))
    fresh = jax.eval_shape(lambda: init_state(student, AdamW(), jax.random.key(0)))
    assert jax.tree.structure(small) == jax.tree.structure(fresh)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(small)] == [(x.shape, x.dtype) for x in jax.tree.leaves(fresh)]


def test_optimizer_state_without_moments_passes():
    assert truncate_tree(((), {"count": np.int32(3)}), KEEP, 6) == ((), {"count": 3})


@pytest.mark.parametrize(
    ("keep", "num_layers", "message"),
    [
        ((0, 6), 6, "layer 6 is to be kept, of a model whose layers are 0 to 5"),
        (
            (0, 1),
            5,
            r"layers/attention/k_DJK has the shape \[6, 16, 2, 4\], and not 5 layers in front: take parameters",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(configs, draw_params, keep, num_layers, message):
    with pytest.raises(InputError, match=f"^{message}"):
        truncate_tree(draw_params(configs["ours"]), keep, num_layers)
