"""A model with another vocabulary: what it keeps is the same to the bit, and what it gains is what the plan says."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.families import llama
from jaxdistill.models.transformer import Transformer
from jaxdistill.models.transplant.fills import Mean, Mixture, Normal
from jaxdistill.models.transplant.matching import match, missing
from jaxdistill.models.transplant.subwords import cut, fvt
from jaxdistill.models.transplant.vocabulary import Plan, transplant, untie

ORDER = np.random.default_rng(0).permutation(37)  # new id -> old id
TOKENS = np.random.default_rng(1).integers(37, size=(2, 9))  # new ids
U = 2.0**-24


def plan_for(config, copies, embed=Mean(), head=Mean()):
    return Plan(copies, embed, None if config.tied else head)


def tables(config):
    return ("embed_VD",) if config.tied else ("embed_VD", "head_VD")


def losses(logits_BLV, tokens_BL):
    """Next-token cross-entropy in fp64, nats."""
    z = np.asarray(logits_BLV[:, :-1], np.float64)
    z = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
    return -np.take_along_axis(z, tokens_BL[:, 1:, None], -1)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
def test_the_same_vocabulary_in_another_order_permutes_the_logits(
    config, draw_params, logits_of, without_padding, padded
):
    config = config if padded else without_padding(config)
    params = draw_params(config)
    got = logits_of(*transplant(config, params, plan_for(config, ORDER)), TOKENS)
    expected = logits_of(config, params, ORDER[TOKENS])
    if padded:  # columns in whole blocks of the matmul: then not even the order of its sums can differ
        np.testing.assert_array_equal(got, expected[..., ORDER])
    np.testing.assert_allclose(got, expected[..., ORDER], rtol=0, atol=2 * 16 * U * np.abs(expected).max() * 4)
    error = 4 * 37 * 2.0**-52 * np.abs(expected).max() if padded else 2 * 2 * 16 * U * np.abs(expected).max() * 4
    np.testing.assert_allclose(losses(got, TOKENS), losses(expected, ORDER[TOKENS]), rtol=0, atol=error)


def test_the_same_vocabulary_in_the_same_order_is_the_identity(config, draw_params):
    params = draw_params(config)
    padding = np.zeros((config.padded_vocab_size - 37, config.width), np.float32)
    params |= {name: jnp.asarray(np.concatenate([params[name][:37], padding])) for name in tables(config)}
    got_config, got = transplant(config, params, plan_for(config, np.arange(37)))
    assert got_config == config
    jax.tree.map(np.testing.assert_array_equal, got, params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_copied_rows_are_the_old_ones_to_the_bit_and_everything_else_stays(config, draw_params, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), draw_params(config))
    copies = np.where(np.arange(50) % 3 == 0, -1, np.arange(50) % 37)
    got_config, got = transplant(config, params, plan_for(config, copies, Normal(1), Normal(2)))
    assert got_config == dataclasses.replace(config, vocab_size=50)
    dims.check(got, got_config.dims)
    for name, old in params.items():
        if name not in tables(config):
            jax.tree.map(np.testing.assert_array_equal, got[name], old)
            continue
        assert got[name].dtype == dtype
        rows = np.asarray(got[name].astype(jnp.float32))
        np.testing.assert_array_equal(rows[:50][copies >= 0], np.asarray(old.astype(jnp.float32))[copies[copies >= 0]])
        assert not rows[50:].any() and rows[:50].any(axis=1).all()


def test_fills_see_the_old_rows_without_their_padding_and_land_where_no_copy_is(config, draw_params):
    params = draw_params(config)
    params["embed_VD"] = params["embed_VD"].at[37:].set(1e9)
    copies = np.array([-1, 3, -1, 0])
    _, got = transplant(config, params, plan_for(config, copies, Mixture.of([((5,), (1.0,)), ((), ())], Mean())))
    embed = np.asarray(params["embed_VD"])
    np.testing.assert_array_equal(got["embed_VD"][jnp.array([0, 1, 3])], embed[[5, 3, 0]])
    mean = embed[:37].astype(np.float64).mean(0)
    np.testing.assert_allclose(got["embed_VD"][2], mean, rtol=0, atol=38 * U * np.abs(embed[:37]).max())


def test_input_and_output_rows_have_their_own_fills(configs, draw_params):
    config = configs["untied"]
    params = draw_params(config)
    take = [Mixture.of([((i,), (1.0,))], Mean()) for i in (5, 6)]
    _, got = transplant(config, params, Plan(np.array([0, -1]), *take))
    np.testing.assert_array_equal(got["embed_VD"][1], params["embed_VD"][5])
    np.testing.assert_array_equal(got["head_VD"][1], params["head_VD"][6])


@pytest.mark.parametrize(("size", "multiple", "rows"), [(261, 128, 384), (128, 128, 128), (5, 4, 8), (7, 1, 7)])
def test_rows_are_padded_to_the_multiple_of_the_model_with_zeros(configs, draw_params, size, multiple, rows):
    config = dataclasses.replace(configs["untied"], vocab_multiple=multiple)
    _, got = transplant(config, draw_params(config), plan_for(config, np.full(size, -1)))
    for name in ("embed_VD", "head_VD"):
        assert got[name].shape == (rows, 16)
        assert not got[name][size:].any() and np.asarray(got[name][:size]).any(axis=1).all()


def test_a_byte_level_student_of_a_subword_model(configs, draw_params, old_table, encode, logits_of):
    bytes_and_end = [*(bytes([n]) for n in range(256)), b""]
    copies = match(old_table, {"eos": 0}, bytes_and_end, {"eos": 256})
    fill = fvt(cut(old_table, bytes_and_end, copies, encode), Mean())
    config, params = untie(configs["tied"], draw_params(configs["tied"]))
    student_config, student = transplant(config, params, Plan(copies, fill, fill))
    assert (student_config.vocab_size, student_config.tied) == (257, False)
    assert len(missing(copies)) == 256 - 28
    text = np.array([list(b"abc the")])
    old = np.array([[old_table.index(bytes([byte])) for byte in text[0]]])
    shared = copies >= 0
    got = logits_of(student_config, student, text)[..., shared]
    expected = logits_of(config, params, old)[..., copies[shared]]
    np.testing.assert_array_equal(got, expected)


def test_untying_changes_no_logit(configs, draw_params, logits_of):
    for name in ("tied", "gemma2", "opt"):
        config, params = configs[name], draw_params(configs[name])
        got_config, got = untie(config, params)
        assert got_config == dataclasses.replace(config, tied=False)
        dims.check(got, got_config.dims)
        np.testing.assert_array_equal(logits_of(got_config, got, TOKENS), logits_of(config, params, TOKENS))


def test_an_untied_model_cannot_be_untied(configs, draw_params):
    with pytest.raises(InputError, match=r"^this model is not tied"):
        untie(configs["llama"], draw_params(configs["llama"]))


def test_a_tree_on_the_host_stays_there_shares_no_memory_and_is_made_alike(config, draw_params):
    params = draw_params(config)
    host = jax.tree.map(np.asarray, params)
    plan = plan_for(config, np.append(ORDER, [-1, -1]), Normal(1), Normal(2))
    _, got = transplant(config, host, plan)
    for new, old in zip(jax.tree.leaves(got), jax.tree.leaves(host), strict=True):
        assert type(new) is np.ndarray and not np.shares_memory(new, old)
    bound = 80 * U * max(np.abs(host[name]).max() for name in tables(config))
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=bound)  # noqa: E731
    jax.tree.map(compare, got, jax.tree.map(np.asarray, transplant(config, params, plan)[1]))


def test_a_student_can_be_donated_and_its_teacher_lives(config, draw_params):
    params = draw_params(config)
    before = jax.tree.map(lambda x: np.array(x), params)
    _, student = transplant(config, params, plan_for(config, np.arange(37)))
    held = jax.tree.leaves(student)
    jax.block_until_ready(jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(student))
    assert all(x.is_deleted() for x in held)
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize("fill", [Mean(), Normal(), None], ids=["mean", "normal", "mixture"])
def test_a_model_of_70_billion_parameters_is_planned_without_memory(fill):
    config = llama.llama(128_256, 80, 8192, 64, 8, 28_672)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    copies = np.where(np.arange(150_000) < 100_000, np.arange(150_000), -1)
    fill = fill or fvt([(1, 2, 3)] * 49_999 + [()])
    new_config, new = transplant(config, shapes, Plan(copies, fill, fill))
    assert new_config.padded_vocab_size == math.ceil(150_000 / config.vocab_multiple) * config.vocab_multiple
    dims.check(new, new_config.dims)
    assert {type(x) for x in jax.tree.leaves(new)} == {jax.ShapeDtypeStruct}


@pytest.mark.parametrize(
    ("name", "plan", "message"),
    [
        ("tied", Plan(np.array([0, 37]), Mean()), "the id 37 is to be copied, of a model whose ids are 0 to 36"),
        ("tied", Plan(np.array([0, -2]), Mean()), "the id -2 is to be copied"),
        ("tied", Plan(np.array([0.0]), Mean()), r"copies are float64 of the shape \[1\]"),
        ("tied", Plan(np.zeros((2, 2), int), Mean()), r"copies are int64 of the shape \[2, 2\]"),
        ("tied", Plan(np.zeros(0, int), Mean()), r"copies are int64 of the shape \[0\]"),
        ("tied", Plan(ORDER, Mean(), Mean()), "the output layer of this model is its embedding: leave plan.head out"),
        ("untied", Plan(ORDER, Mean()), "the output layer of this model is not its embedding: give plan.head a fill"),
        ("tied", Plan(np.array([0, -1]), Mixture.of([], Mean())), "a mixture for 0 tokens, and 1 have no copy"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(configs, draw_params, name, plan, message):
    with pytest.raises(InputError, match=f"^{message}"):
        transplant(configs[name], draw_params(configs[name]), plan)


def test_parameters_of_another_model_are_refused(configs, draw_params):
    config, params = configs["untied"], draw_params(configs["untied"])
    with pytest.raises(InputError, match=r"^embed_VD is \[128, 16\], and \[256, 16\] in a model of this configuration"):
        transplant(dataclasses.replace(config, vocab_size=200), params, plan_for(config, ORDER))
    del params["head_VD"]
    with pytest.raises(InputError, match=r"^head_VD is missing, and \[128, 16\] in a model of this configuration"):
        transplant(config, params, plan_for(config, ORDER))
