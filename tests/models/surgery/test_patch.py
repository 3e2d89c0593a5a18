"""Patched models: everything between a student and the teacher that it was cut from."""

import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.families import llama
from jaxdistill.models.surgery import layers, patterns
from jaxdistill.models.surgery.patch import patch, patch_config
from jaxdistill.models.surgery.truncate import config_of_layers, truncate
from jaxdistill.models.transformer import Transformer

KEEP = (0, 1, 4)  # blocks of one, three and two layers
SUBSETS = [subset for size in range(4) for subset in itertools.combinations(range(3), size)]


@pytest.fixture
def two(draw_host):
    """(config) -> (student config, student's parameters, which are nobody else's, teacher config, its parameters)."""

    def make(config, keep=KEEP):
        small = config_of_layers(config, keep)
        return small, draw_host(small, seed=1), config, draw_host(config)

    return make


def test_a_student_with_all_blocks_replaced_is_the_teacher_to_the_bit(config, two, assert_same):
    got_config, got = patch(*two(config), KEEP, layers.last_blocks(KEEP, 6, 2))
    assert got_config == config
    assert_same(got, two(config)[3])


@pytest.mark.parametrize("name", ["ours", "gemma3", "opt"])
def test_a_student_with_all_blocks_replaced_has_the_teachers_logits_to_the_bit(configs, name, two, logits_of):
    *student, config, teacher = two(configs[name])
    patched = patch(*student, config, teacher, KEEP, range(3))
    np.testing.assert_array_equal(logits_of(*patched), logits_of(config, teacher))


def test_a_student_with_nothing_replaced_is_the_student_to_the_bit(config, two, assert_same):
    models = two(config)
    got_config, got = patch(*models, KEEP, ())
    assert got_config == models[0]
    assert_same(got, models[1])


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_an_untrained_patched_student_is_the_naively_pruned_teacher(config, draw_host, assert_same, subset):
    teacher = draw_host(config)
    student_config, student = truncate(config, teacher, KEEP)
    got_config, got = patch(student_config, student, config, teacher, KEEP, subset)
    pruned_config, pruned = truncate(config, teacher, layers.origins(KEEP, 6, subset))
    if got_config.tied != config.tied:  # its two tables are one table twice
        np.testing.assert_array_equal(got.pop("head_VD"), got["embed_VD"])
    assert dataclasses.replace(got_config, tied=config.tied) == pruned_config
    assert_same(got, pruned)


def test_the_same_holds_for_any_layers_kept_and_any_subset(configs, draw_host, assert_same):
    draw = random.Random(0)
    for _ in range(100):
        config = dataclasses.replace(configs["ours untied"], num_layers=(N := draw.randrange(1, 12)))
        teacher, keep = draw_host(config), (0, *sorted(draw.sample(range(1, N), draw.randrange(N))))
        subset = draw.sample(range(len(keep)), draw.randrange(len(keep) + 1))
        student = truncate(config, teacher, keep)
        got_config, got = patch(*student, config, teacher, keep, subset)
        pruned_config, pruned = truncate(config, teacher, layers.origins(keep, N, subset))
        assert got_config == pruned_config
        assert_same(got, pruned)


@pytest.mark.parametrize("name", ["ours", "gemma3", "opt"])
def test_an_untrained_patched_student_has_the_logits_of_the_naively_pruned_teacher(
    configs, name, draw_params, logits_of
):
    config, subset = configs[name], (1,)
    teacher = draw_params(config)
    student_config, student = truncate(config, teacher, KEEP)
    patched = patch(student_config, student, config, teacher, KEEP, subset)
    pruned = truncate(config, teacher, (0, 1, 2, 3, 4))
    np.testing.assert_array_equal(logits_of(*patched), logits_of(*pruned))


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_every_part_comes_from_the_model_that_supplies_it(config, two, subset):
    student_config, student, _, teacher = two(config)
    got_config, got = patch(student_config, student, config, teacher, KEEP, subset)
    dims.check(got, got_config.dims)
    assert got_config.num_layers == layers.depth(KEEP, 6, subset)
    cut = layers.blocks(KEEP, 6)
    own = [(teacher, n) if i in subset else (student, i) for i in range(3) for n in (cut[i] if i in subset else (i,))]
    for got_leaf, *sources in zip(*(jax.tree.leaves(tree["layers"]) for tree in (got, student, teacher)), strict=True):
        by_hand = [sources[model is teacher][n] for model, n in own]
        np.testing.assert_array_equal(got_leaf, jnp.stack(by_hand))
    first, last = own[0][0], own[-1][0]
    for name in {"embed_VD", "position_PD"} & first.keys():
        np.testing.assert_array_equal(got[name], first[name])
    for name in {"norm_D", "norm_bias_D"} & last.keys():
        np.testing.assert_array_equal(got[name], last[name])
    head = Transformer(got_config).head(got, jnp.zeros((1, 1, config.width)))
    np.testing.assert_array_equal(head.w_VD, last.get("head_VD", last["embed_VD"]))
    assert got_config.tied == (config.tied and first is last)


@pytest.mark.parametrize(
    ("name", "subset", "local"),
    [("gemma2", (1,), (0, 2, 4)), ("gemma2", (2,), (0, 2)), ("gemma3", (1,), (0, 1, 3, 4)), ("gemma3", (2,), (0, 1, 2)),
     ("mistral", (1,), None)],
)  # fmt: skip
def test_windows_follow_their_layers(configs, two, name, subset, local):
    config = configs[name]
    assert patch(*two(config), KEEP, subset)[0].design.attention.window.layers == local


def test_a_subset_is_a_set(configs, two, assert_same):
    models = two(configs["ours"])
    assert_same(patch(*models, KEEP, [2, 0])[1], patch(*models, KEEP, {0, 2})[1])


def test_the_sizes_of_a_family_are_linear_in_depth(config, two):
    models, keep = two(config, (0, 2, 4)), (0, 2, 4)
    found = [patch(*models, keep, layers.last_blocks(keep, 6, k))[0] for k in range(4)]
    assert [c.num_layers for c in found] == [3, 4, 5, 6]
    assert len(set(np.diff([c.num_params for c in found]))) == 1


def test_a_tied_teacher_and_an_untied_student_patch(configs, two, draw_host):
    config = configs["ours"]
    student_config = dataclasses.replace(two(config)[0], tied=False)
    student, teacher = draw_host(student_config, seed=1), draw_host(config)
    for subset, tied in (((), False), ((0,), False), ((2,), False), ((0, 2), True)):
        got_config, got = patch(student_config, student, config, teacher, KEEP, subset)
        assert got_config.tied == tied == ("head_VD" not in got)


def test_layers_of_two_dtypes_are_joined_in_the_wider_one(configs, two, assert_same):
    student_config, student, config, teacher = two(configs["ours"])
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), teacher)
    mixed = patch(student_config, student, config, half, KEEP, (1,))[1]
    assert {x.dtype for x in jax.tree.leaves(mixed["layers"])} == {np.dtype(np.float32)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    assert_same(mixed, patch(student_config, student, config, wide, KEEP, (1,))[1])
    assert_same(patch(student_config, student, config, half, KEEP, range(3))[1], half)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_on_the_host_nothing_shares_memory_and_on_a_device_the_same_comes_out(configs, two, assert_same, subset):
    student_config, student, config, teacher = two(configs["opt"])
    here = patch(student_config, student, config, teacher, KEEP, subset)[1]
    for x in jax.tree.leaves(here):
        assert type(x) is np.ndarray
        assert not any(np.shares_memory(x, y) for y in jax.tree.leaves((student, teacher)))
    student, teacher = jax.tree.map(jnp.asarray, (student, teacher))
    there = patch(student_config, student, config, teacher, KEEP, subset)[1]
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(there))
    assert_same(here, there)


@pytest.mark.parametrize("config", ["ours", "ours untied", "opt"], indirect=True)
@pytest.mark.parametrize("subset", [(), (1,), (0, 1, 2)], ids=str)
def test_a_patched_model_can_be_donated_and_both_it_came_from_live(config, two, subset):
    student_config, *_ = models = two(config)
    student, teacher = jax.tree.map(jnp.array, (models[1], models[3]))
    held = jax.tree.leaves(got := patch(student_config, student, config, teacher, KEEP, subset)[1])
    jax.block_until_ready(jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(got))
    assert all(x.is_deleted() for x in held)
    jax.tree.map(np.testing.assert_array_equal, (student, teacher), (models[1], models[3]))


def test_models_of_70_billion_parameters_are_patched_without_memory():
    config, keep = llama.llama(128_256, 80, 8192, 64, 8, 28_672), patterns.every_nth(80)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    student = truncate(config, shapes, keep)
    for k in (0, 20, 39):
        got_config, got = patch(*student, config, shapes, keep, layers.last_blocks(keep, 80, k))
        assert got_config.num_layers == 41 + k
        dims.check(got, got_config.dims)
        assert {type(x) for x in jax.tree.leaves(got)} == {jax.ShapeDtypeStruct}
        traced = jax.eval_shape(lambda s, t: patch(student[0], s, config, t, keep, [3])[1], student[1], shapes)
        assert {x.shape[0] for x in jax.tree.leaves(traced["layers"])} == {42}


NOT_MADE = "student and teacher were not made for each other"


@pytest.mark.parametrize(
    ("name", "changes", "keep", "message"),
    [
        ("ours", {}, (0, 1), f"{NOT_MADE}: num_layers of the student is 3, and 2 in the teacher cut to 2 layers"),
        ("ours", {"width": 24}, KEEP, f"{NOT_MADE}: width of the student is 24, and 16 in the teacher cut to 3 layers"),
        ("ours", {"rope_base": 9.0}, KEEP, f"{NOT_MADE}: rope_base of the student is 9.0, and 500000.0 in the teacher"),
        ("gemma2", {}, (0, 2, 4), f"{NOT_MADE}: design of the student is Design"),
        ("ours", {}, (1, 2, 3), "layers before 1 would belong to no block of the teacher: keep layer 0"),
        ("ours", {}, (0, 1, 6), "layer 6 is to be kept, of a model whose layers are 0 to 5"),
    ],
    ids=str,
)
def test_models_that_were_not_made_for_each_other_are_refused_in_one_sentence(
    configs, two, name, changes, keep, message
):
    student, _, teacher, _ = two(configs[name])
    with pytest.raises(InputError, match=f"^{message}"):
        patch_config(dataclasses.replace(student, **changes), teacher, keep, ())


def test_models_of_two_kinds_of_configuration_are_refused(configs, two):
    with pytest.raises(InputError, match=f"^{NOT_MADE}: one is a Config, the other a Variant$"):
        patch_config(two(configs["ours"])[0], configs["pythia"], KEEP, ())


def test_a_layer_that_the_student_does_not_have_cannot_be_replaced(configs, two):
    with pytest.raises(InputError, match=r"^layer 3 is to be replaced, of a student whose layers are 0 to 2$"):
        patch(*two(configs["ours"]), KEEP, (0, 3))


def test_parameters_that_are_not_of_their_configuration_are_refused(configs, two):
    student_config, _, config, teacher = two(configs["ours"])
    with pytest.raises(InputError, match=r"has the shape \[6, 16, 2, 4\], and not 3 layers in front: take parameters"):
        patch(student_config, teacher, config, teacher, KEEP, (1,))
