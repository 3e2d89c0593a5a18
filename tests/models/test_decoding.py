"""Reading a text piece by piece into a cache: the states are those of reading it whole."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models import decoding
from jaxdistill.models.families import gpt
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.shard import Shard

L, SLOTS = 9, 12  # past every window of the families, with room behind
# at most 7 layers of some 8 reductions of at most 37 terms, each off by 2 sqrt(n) u, in both of the two that differ
FP32 = 2 * 7 * 8 * 2 * math.sqrt(37) * 2.0**-24


def random_tokens(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(37, size=shape), jnp.int32)


@functools.partial(jax.jit, static_argnames="model")
def whole(model, params, tokens_BL):
    """Hidden states and logits, by the training forward."""
    h_BLD, _ = model.hidden(params, tokens_BL)
    return h_BLD, model.head(params, h_BLD).logits()


@functools.partial(jax.jit, static_argnames="model")
def extend(model, params, tokens_BL, start_B, cache):
    h_BLD, cache = model.extend(params, tokens_BL, start_B, cache)
    return h_BLD, model.head(params, h_BLD).logits(), cache


def in_pieces(model, params, tokens_BL):
    """As `whole`, the text read as a prompt, a piece that follows it, and single tokens."""
    B, cache, found = len(tokens_BL), model.cache(len(tokens_BL), SLOTS), []
    for start, stop in itertools.pairwise((0, 4, 7, 8, L)):
        *piece, cache = extend(model, params, tokens_BL[:, start:stop], jnp.full(B, start, jnp.int32), cache)
        found.append(piece)
    return [jnp.concatenate(pieces, axis=1) for pieces in zip(*found, strict=True)]


def assert_close(got, expected, tolerance=FP32):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_states_and_logits_are_those_of_the_whole_text(family, draw_params):
    model, params, tokens_BL = Transformer(family), draw_params(family), random_tokens((2, L))
    h_BLD, z_BLV = whole(model, params, tokens_BL)
    piece_BLD, piece_BLV = in_pieces(model, params, tokens_BL)
    assert_close(piece_BLD, h_BLD)
    assert_close(piece_BLV[..., :37], z_BLV[..., :37])


some_families = pytest.mark.parametrize("family", ["gemma3", "gpt2", "qwen3_moe"], indirect=True)


@some_families
def test_rows_of_any_lengths_are_as_each_alone(family, draw_params):
    model, params, sizes = Transformer(family), draw_params(family), np.array([2, 7, 4], np.int32)
    tokens_BL = random_tokens((3, L))
    padded_BL = jnp.where(np.arange(7) < sizes[:, None], tokens_BL[:, :7], 36)
    cache = extend(model, params, padded_BL, jnp.zeros(3, jnp.int32), model.cache(3, SLOTS))[-1]
    for step in range(2):  # every row goes on from its own end, over what the padding left
        next_B1 = jnp.take_along_axis(tokens_BL, sizes[:, None] + step, axis=1)
        h_BLD, _, cache = extend(model, params, next_B1, jnp.asarray(sizes + step), cache)
        for row, size in enumerate(sizes):
            alone_BLD, _ = whole(model, params, tokens_BL[row : row + 1])  # whose later tokens this one does not see
            assert_close(h_BLD[row, 0], alone_BLD[0, size + step])


@some_families
def test_what_the_padding_holds_changes_no_bit(family, draw_params):
    model, params, tokens_BL = Transformer(family), draw_params(family), random_tokens((2, 7))
    three_B = jnp.full(2, 3, jnp.int32)

    def after(padding):
        padded_BL = tokens_BL.at[:, 3:].set(padding)
        prompt_BLD, _, cache = extend(model, params, padded_BL, jnp.zeros(2, jnp.int32), model.cache(2, SLOTS))
        return prompt_BLD, *extend(model, params, tokens_BL[:, 3:4], three_B, cache)[:2]

    (one_BLD, *one), (other_BLD, *other) = after(5), after(30)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    np.testing.assert_array_equal(one_BLD[:, :3], other_BLD[:, :3])
    assert np.any(one_BLD[:, 3:] != other_BLD[:, 3:])


@some_families
def test_the_cache_holds_the_keys_and_values_that_attention_computes_with(family, draw_params):
    model, params, tokens_BL = Transformer(family), draw_params(family), random_tokens((2, L))
    *_, cache = extend(model, params, tokens_BL, jnp.zeros(2, jnp.int32), model.cache(2, SLOTS))
    inside = tuple((name, n) for name in ("keys", "values") for n in range(family.num_layers))
    seen = jax.jit(model.look, static_argnames="inside")(params, tokens_BL, inside=inside)[2]
    for name, kept in (("keys", cache.k_NBMJK), ("values", cache.v_NBMJK)):
        for n in range(family.num_layers):
            assert_close(kept[n, :, :L], seen[name, n])
        np.testing.assert_array_equal(kept[:, :, L:], 0)


def test_a_cache_has_the_shape_of_its_letters_the_models_dtype_and_its_place():
    config, placed = Config(37, 3, 16, 4, 6, 20, num_kv_heads=2), []

    class Noting(Shard):
        def __call__(self, x, own):
            placed.append((own, x.shape))
            return x

    model = Transformer(config, dtype=jnp.bfloat16, shard=Noting())
    cache = model.cache(5, SLOTS)
    assert placed == [("NBMJK", (3, 5, SLOTS, 2, 6))] * 2
    dims.check(cache._asdict(), config.dims | {"B": 5, "M": SLOTS}, "cache")
    assert {x.dtype for x in cache} == {jnp.dtype(jnp.bfloat16)}
    params = jax.eval_shape(model.init, jax.random.key(0))
    step = functools.partial(jax.eval_shape, model.extend, params, cache=cache)
    h_BLD, grown = step(random_tokens((5, 1)), jnp.zeros(5, jnp.int32))
    assert h_BLD.dtype == jnp.bfloat16
    assert [(x.shape, x.dtype) for x in grown] == [(x.shape, x.dtype) for x in cache]


@pytest.mark.parametrize("window", [None, 1, 3, 20])
def test_the_mask_of_slots_is_the_one_that_loops_write(window):
    position_BL = np.array([[0, 1, 2], [4, 5, 6]])
    mask = np.asarray(decoding.slot_mask(jnp.asarray(position_BL), 8, window))
    assert mask.shape == (2, 1, 3, 8) and mask.dtype == bool
    for b, q, m in np.ndindex(2, 3, 8):
        behind = position_BL[b, q] - m
        assert mask[b, 0, q, m] == (behind >= 0 and (window is None or behind < window))


def test_tokens_are_written_from_their_own_slot_on_and_nowhere_else():
    rng = np.random.default_rng(0)
    old, new, start = rng.normal(size=(3, 6, 2, 4)), rng.normal(size=(3, 2, 2, 4)), np.array([0, 4, 2])
    expected = old.copy()
    for b, m in enumerate(start):
        expected[b, m : m + 2] = new[b]
    got = decoding.write(*(jnp.asarray(x, jnp.float32) for x in (old, new)), jnp.asarray(start))
    np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_a_step_of_decoding_needs_no_second_cache():
    config = Config(37, 4, 16, 2, 64, 20)
    model, batch, slots = Transformer(config), 4, 512
    params = jax.eval_shape(model.init, jax.random.key(0))
    cache = jax.eval_shape(lambda: model.cache(batch, slots))
    step = jax.jit(model.extend, donate_argnums=3)
    tokens_BL, start_B = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch, 1), (batch,)))
    memory = step.lower(params, tokens_BL, start_B, cache).compile().memory_analysis()
    assert memory is not None
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in cache)
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < 0.75 * size  # one layer's keys and values at a time, of four


def test_more_positions_than_were_learned_are_refused():
    model = Transformer(gpt.gpt2(3, 16, 4, 37))
    rows = model.config.dims["P"]
    assert model.cache(1, rows).k_NBMJK.shape[2] == rows
    with pytest.raises(InputError, match=f"{rows + 1} positions are more than the {rows} that this model has learned"):
        model.cache(1, rows + 1)
