"""Decoders of every family: what must hold for all of them, and what sets one apart."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import config as configs
from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.design import AttentionDesign, Design, Experts, LearnedPositions, Llama3Scaling, Rotary, Window
from jaxdistill.models.families import gpt
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.models.variant import Variant

SIZES = {
    "vocab_size": 37,
    "num_layers": 3,
    "width": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_size": 6,
    "mlp_width": 20,
}
# at most 7 layers of some 8 reductions of at most 37 terms, each off by 2 sqrt(n) u
FP32 = 7 * 8 * 2 * math.sqrt(37) * 2.0**-24


def assert_close(got, expected, tolerance=FP32):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def random_tokens(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(37, size=shape), jnp.int32)


def test_documents_packed_into_a_row_are_as_documents_in_rows_of_their_own(family, draw_params):
    model, params, (a, b) = Transformer(family), draw_params(family), random_tokens((2, 7))
    a, b, filler = a[:7], b[:5], random_tokens((7,), seed=1)
    row = lambda *parts: np.concatenate(parts).astype(np.int32)  # noqa: E731
    count = lambda *sizes: row(*(np.arange(size) for size in sizes))  # noqa: E731
    mark = lambda *sizes: row(*(np.full(size, i) for i, size in enumerate(sizes)))  # noqa: E731
    tokens_BL = np.stack([row(a, b), row(a, filler[:5]), row(b, filler)])
    segment_BL = np.stack([mark(7, 5), mark(7, 5), mark(5, 7)])
    position_BL = np.stack([count(7, 5), count(7, 5), count(5, 7)])
    h_BLD, _ = jax.jit(model.hidden)(params, tokens_BL, segment_BL, position_BL)
    assert_close(h_BLD[1, :7], h_BLD[0, :7])
    assert_close(h_BLD[2, :5], h_BLD[0, 7:])
    assert np.abs(h_BLD[1, 7:] - h_BLD[0, 7:]).max() > 0.1  # other tokens, other states


def test_parameters_are_counted_as_they_are_and_have_the_shapes_of_their_letters(family):
    params = jax.eval_shape(Transformer(family).init, jax.random.key(0))
    dims.check(params, family.dims)
    total = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    padding = (128 - 37) * family.width * (1 if family.tied else 2)
    assert family.num_params_total == total - padding
    tables = {"embed_VD", "head_VD", "position_PD"} & params.keys()
    embeddings = sum(math.prod(params[name].shape) for name in tables)
    assert family.num_params == total - embeddings


def test_every_parameter_has_a_gradient(family, draw_params):
    model, params = Transformer(family), draw_params(family)

    def loss(params):
        h_BLD, _ = model.hidden(params, random_tokens((2, 12)))
        return -jnp.mean(jax.nn.log_softmax(model.head(params, h_BLD).logits())[..., 3])

    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    silent = {path for path, _, g in dims.leaves(grads) if not np.any(g)}
    # keys' biases add the same to all scores of a query, which the softmax does not see
    assert silent <= {path for path, _, _ in dims.leaves(grads) if path.endswith("k_bias_JK")}


def test_the_learning_rate_of_a_public_model_has_no_multiplier(family):
    assert {
        family.lr_multiplier(own)
        for _, own, _ in dims.leaves(jax.eval_shape(Transformer(family).init, jax.random.key(0)))
    } == {1.0}


def test_biases_positions_and_gains_learn_at_the_plain_rate_whatever_the_width():
    config = dataclasses.replace(gpt.gpt2(2, 64, 4, 37), base_width=16)
    letters = dims.tree_letters(jax.eval_shape(Transformer(config).init, jax.random.key(0)))
    slow = {path for path, _, own in dims.leaves(letters) if config.lr_multiplier(own) == 0.25}
    matrices = {"attention/q_DHK", "attention/k_DJK", "attention/v_DJK", "attention/o_HKD", "mlp/up_DF", "mlp/down_FD"}
    assert slow == {f"layers/{name}" for name in matrices}


def test_a_variant_of_our_own_design_is_our_own_model_to_the_bit():
    own, variant = Config(**SIZES), Variant(**SIZES)
    params = jax.jit(Transformer(own).init)(jax.random.key(0))
    for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(jax.jit(Transformer(variant).init)(jax.random.key(0))), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    h, other_h = (jax.jit(Transformer(c).hidden)(params, random_tokens((2, 9)))[0] for c in (own, variant))
    np.testing.assert_array_equal(h, other_h)
    assert (own.num_params, own.num_params_total) == (variant.num_params, variant.num_params_total)


def test_a_configuration_of_every_family_survives_its_text(family):
    assert configs.parse("experiment = " + configs.text(family).partition(" = ")[2]) == family


def sees(config, params, L=9):
    """Which position's output depends on which position's input, bool [L, L], layer by layer of the model's scan."""
    model = Transformer(config)
    direction_D = np.random.default_rng(1).normal(size=config.width).astype(np.float32)

    def project(embed_VD):
        return model.hidden(params | {"embed_VD": embed_VD}, jnp.arange(L)[None])[0][0] @ direction_D

    return np.abs(jax.jit(jax.jacrev(project))(params["embed_VD"])).max(-1)[:, :L] > 0


def windowed(num_layers, window):
    return Variant(
        **SIZES | {"num_layers": num_layers}, tied=False, design=Design(attention=AttentionDesign(window=window))
    )


@pytest.mark.parametrize("size", [1, 3, 9])
def test_a_window_shows_as_many_positions_as_its_size(size, draw_params):
    config = windowed(1, Window(size))
    distance_LM = np.subtract.outer(np.arange(9), np.arange(9))
    np.testing.assert_array_equal(sees(config, draw_params(config)), (distance_LM >= 0) & (distance_LM < size))


def test_layers_without_the_window_see_everything(draw_params):
    distance_LM = np.subtract.outer(np.arange(9), np.arange(9))
    both, one = windowed(2, Window(3)), windowed(2, Window(3, (0,)))
    np.testing.assert_array_equal(sees(both, draw_params(both)), (distance_LM >= 0) & (distance_LM < 5))
    np.testing.assert_array_equal(sees(one, draw_params(one)), distance_LM >= 0)


def test_a_window_that_lists_all_layers_is_a_window_on_all(draw_params):
    everywhere, listed = windowed(3, Window(3)), windowed(3, Window(3, (0, 1, 2)))
    params, tokens_BL = draw_params(everywhere), random_tokens((2, 9))
    a, b = (jax.jit(Transformer(c).hidden)(params, tokens_BL)[0] for c in (everywhere, listed))
    assert_close(a, b)


def test_layers_with_a_window_turn_by_their_own_base(draw_params):
    base = windowed(2, Window(9, (1,)))
    local = dataclasses.replace(base.design, position=Rotary(local_base=50.0))
    params, tokens_BL = draw_params(base), random_tokens((2, 9))
    run = lambda c: jax.jit(Transformer(c).hidden, static_argnames="keep")(params, tokens_BL, keep=(0, 1))[1]  # noqa: E731
    plain, changed = run(base), run(dataclasses.replace(base, design=local))
    everywhere = run(dataclasses.replace(base, rope_base=50.0))
    assert_close(plain[0], changed[0])  # the first layer has no window, and its old base
    assert np.abs(plain[1] - changed[1]).max() > 1e-3 and np.abs(everywhere[1] - changed[1]).max() > 1e-3


@pytest.mark.parametrize("family", ["gemma2", "mixtral", "pythia"], indirect=True)
def test_what_is_kept_of_a_layer_is_what_its_attention_computes_with(family, draw_params):
    model, params, tokens_BL = Transformer(family), draw_params(family), random_tokens((2, 9))
    names = ("queries", "keys", "values", "attention")
    inside = tuple((name, 1) for name in names)
    look = jax.jit(model.look, static_argnames=("keep", "inside"))
    h_BLD, kept, seen = look(params, tokens_BL, keep=(0, -1), inside=inside)
    assert set(kept) == {0, -1} and set(seen) == set(inside)
    q, k, _, p_BHLM = (np.asarray(seen[tap], np.float64) for tap in inside)
    scale = family.design.attention.scale or family.head_size**-0.5
    k = np.repeat(k, family.num_heads // family.num_kv_heads, axis=2)
    z = scale * np.einsum("blhk,bmhk->bhlm", q, k)
    if cap := family.design.attention.softcap:
        z = cap * np.tanh(z / cap)
    z = np.where(np.tril(np.ones((9, 9), bool)), z, -np.inf)  # layer 1 has no window in any of them
    expected = np.exp(z - z.max(-1, keepdims=True))
    assert_close(p_BHLM, expected / expected.sum(-1, keepdims=True))
    plain_BLD, _ = jax.jit(model.hidden)(params, tokens_BL)
    assert_close(h_BLD, plain_BLD)


def test_looking_into_a_layer_costs_the_others_nothing(draw_params):
    config = dataclasses.replace(Config(**SIZES), num_layers=5)
    model, params = Transformer(config), draw_params(config)

    def look(inside):
        return lambda tokens_BL: model.look(params, tokens_BL, inside=inside)

    def maps(inside):
        text = str(jax.make_jaxpr(look(inside))(random_tokens((2, 9))))
        return text.count("f32[1,2,4,9,9]"), text.count("f32[5,2,4,9,9]")

    assert maps(()) == (0, 0)
    once, all_layers = maps((("attention", 3),))
    assert once >= 1 and all_layers == 0


def test_the_router_of_a_mixture_can_be_looked_at(draw_params, family):
    model, inside = Transformer(family), (("router", -1),)
    run = lambda: jax.eval_shape(lambda p: model.look(p, random_tokens((2, 9)), inside=inside)[2], draw_params(family))  # noqa: E731
    if isinstance(family.design.mlp, Experts):
        logits_BLE = run()["router", -1]
        assert logits_BLE.shape == (2, 9, family.design.mlp.num) and logits_BLE.dtype == jnp.float32
    else:
        with pytest.raises(
            InputError, match=r"^'router' is asked for, and a layer of this model has queries, keys, values"
        ):
            run()


def test_more_positions_than_were_learned_are_refused(draw_params):
    config = dataclasses.replace(
        gpt.opt(2, 16, 4, 37),
        design=dataclasses.replace(gpt.opt(2, 16, 4, 37).design, position=LearnedPositions(10, offset=2)),
    )
    model, params = Transformer(config), draw_params(config)
    assert model.hidden(params, random_tokens((1, 8)))[0].shape == (1, 8, 16)
    with pytest.raises(
        InputError, match=r"^9 positions are more than the 8 that this model has learned: shorten them$"
    ):
        model.hidden(params, random_tokens((1, 9)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention": AttentionDesign(window=Window(2, (3,)))},
            "a window on layer 3 of a model with 3 layers: take it away",
        ),
        ({"position": Rotary(local_base=5.0)}, "design.position.local_base is for layers with a window: give"),
        ({"position": Rotary(fraction=0.5)}, "model.head_size is 6; rotary positions need an even one"),
    ],
    ids=str,
)
def test_a_design_that_makes_no_sense_is_refused_in_one_sentence(changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        Variant(**SIZES, design=Design(**changes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(0), "an attention window of 0 sees nothing; it must be at least 1"),
        (lambda: Experts(4, 5), "5 active experts of 4: choose at least 1 and at most all"),
        (lambda: Llama3Scaling(8.0, 4.0, 4.0, 8), r"Llama3Scaling: low \(4.0\) must be below high \(4.0\)"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused_in_one_sentence(make, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        make()
