"""What the parts of a layer do: held against the layer's own output, and against float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.models import norms
from jaxdistill.models.surgery import activations, width
from jaxdistill.models.surgery.influence import stream
from jaxdistill.models.surgery.truncate import config_of_layers
from jaxdistill.models.transformer import Transformer

U = 2.0**-24
# one layer of some 8 reductions of at most 128 terms, each off by 2 sqrt(n) u
LAYER = 8 * 2 * math.sqrt(128) * U
DENSE = pytest.mark.parametrize("config", ["ours", "gemma2", "opt", "pythia"], indirect=True)


def layer_output(config, layer, x_BLD, found):
    """What leaves a layer, made of what was found inside."""
    norm = functools.partial(norms.apply, design=config.design.norm, eps=config.norm_eps)
    last_BLD = found["channels_BLF"] @ layer["mlp"]["down_FD"] + layer["mlp"].get("down_bias_D", 0)
    parts = {"attention": activations.output(layer["attention"], found["heads_BLHK"]), "mlp": last_BLD}
    if config.design.residual == "sandwich":
        parts = {name: norm(x, layer[f"{name}_post_norm_D"], None) for name, x in parts.items()}
    return x_BLD + parts["attention"] + parts["mlp"]


@DENSE
def test_what_is_found_in_a_layer_makes_its_output(config, draw_params, tokens_BL):
    model, params, n = Transformer(config), draw_params(config), 3

    @jax.jit
    def both(params):
        _, kept, seen = model.look(params, tokens_BL, keep=(2, 3), inside=(("attention", n), ("values", n)))
        layer = jax.tree.map(lambda x: x[n], params["layers"])
        found = activations.layer_activations(config, layer, kept[2], seen["attention", n], seen["values", n])
        return layer_output(config, layer, kept[2], found), kept[3]

    got, expected = both(params)
    np.testing.assert_allclose(got, expected, rtol=0, atol=LAYER * np.abs(expected).max())


def exact_sums(config, params, states, seen, weight_BL):
    """The definition, in float64, with a loop over layers, sequences and heads."""
    N = config.num_layers
    J, F, D = np.zeros((N, config.num_kv_heads)), np.zeros((N, config.mlp_width)), np.zeros(config.width)
    for n in range(N):
        layer = jax.tree.map(lambda x: x[n], params["layers"])  # noqa: B023
        p, v = seen["attention", n], seen["values", n]
        found = activations.layer_activations(config, layer, states[n], p, v)
        p, v, act, *normed = (
            np.asarray(x, np.float64)
            for x in (p, v, found["channels_BLF"], found["attention_norm_BLD"], found["mlp_norm_BLD"])
        )
        shared = config.num_heads // config.num_kv_heads
        for b in range(weight_BL.shape[0]):
            real = weight_BL[b] != 0
            for head in range(config.num_heads):
                said_LK = p[b, head] @ v[b, :, head // shared]
                J[n, head // shared] += math.sqrt((said_LK[real] ** 2).sum())
            F[n] += np.sqrt((act[b, real] ** 2).sum(0))
            D += sum(np.sqrt((x[b, real] ** 2).sum(0)) for x in normed)
    return {"J": J, "F": F, "D": D}


@DENSE
def test_importance_is_the_norm_over_positions_added_over_sequences(config, draw_params, tokens_BL):
    config = config_of_layers(config, range(3))
    model, params = Transformer(config), draw_params(config)
    weight_BL = np.ones((2, 9), np.float32)
    weight_BL[1, 6:] = 0
    got = jax.jit(functools.partial(activations.importance_sums, model))(params, tokens_BL, weight_BL)
    inside = [(name, n) for n in range(3) for name in ("attention", "values")]
    seen = jax.jit(lambda p: model.look(p, tokens_BL, inside=inside)[2])(params)
    exact = exact_sums(config, params, jax.jit(lambda p: stream(model, p, tokens_BL))(params), seen, weight_BL)
    for letter, x in exact.items():  # whatever the three layers add up to by way of rounding
        np.testing.assert_allclose(got[letter], x, rtol=0, atol=3 * LAYER * np.abs(x).max(), err_msg=letter)


def test_padding_at_the_end_does_not_count_whatever_it_says(configs, draw_params, tokens_BL):
    config = config_of_layers(configs["ours"], range(2))
    params = draw_params(config)
    run = jax.jit(functools.partial(activations.importance_sums, Transformer(config)))
    weight_BL = jnp.ones((2, 9)).at[:, 6:].set(0)
    for letter, x in run(params, tokens_BL, weight_BL).items():
        other = run(params, tokens_BL.at[:, 6:].set(1), weight_BL)[letter]
        np.testing.assert_array_equal(x, other, err_msg=letter)


def test_sums_of_batches_add_to_those_of_all_sequences(configs, draw_params, tokens_BL):
    config = config_of_layers(configs["ours"], range(2))
    params = draw_params(config)
    run = jax.jit(functools.partial(activations.importance_sums, Transformer(config)))
    one, other = (run(params, tokens_BL[i : i + 1], jnp.ones((1, 9))) for i in range(2))
    whole = run(params, tokens_BL, jnp.ones((2, 9)))
    for letter, x in whole.items():
        bound = 3 * LAYER * np.abs(x).max()
        np.testing.assert_allclose(one[letter] + other[letter], x, rtol=0, atol=bound, err_msg=letter)


def test_heads_and_channels_that_say_nothing_have_no_importance_and_go_without_a_change(
    configs, draw_params, tokens_BL, logits_of
):
    config = config_of_layers(configs["ours"], range(3))
    params = draw_params(config)
    layers, silent_F = params["layers"], np.array([[n, n + 7, 19] for n in range(3)])
    for n in range(3):
        layers["attention"]["v_DJK"] = layers["attention"]["v_DJK"].at[n, :, n % 2].set(0)
        layers["mlp"]["up_DF"] = layers["mlp"]["up_DF"].at[n, :, silent_F[n]].set(0)
    sums = jax.jit(functools.partial(activations.importance_sums, Transformer(config)))(
        params, tokens_BL, jnp.ones((2, 9))
    )
    assert np.argwhere(np.asarray(sums["J"]) == 0).tolist() == [[n, n % 2] for n in range(3)]
    assert np.argwhere(np.asarray(sums["F"]) == 0)[:, 1].reshape(3, 3).tolist() == silent_F.tolist()
    choice = {"J": width.choose(sums["J"], 1), "F": width.choose(sums["F"], 17)}
    got, expected = logits_of(*width.prune(config, params, choice)), logits_of(config, params)
    np.testing.assert_allclose(
        got[..., :37], expected[..., :37], rtol=0, atol=3 * LAYER * np.abs(expected[..., :37]).max()
    )


def test_the_channels_of_experts_are_not_measured(configs, draw_params, tokens_BL):
    model, params = Transformer(configs["mixtral"]), draw_params(configs["mixtral"])
    with pytest.raises(
        InputError, match=r"^the channels of a mixture's experts cannot be measured here: give their imp"
    ):
        activations.importance_sums(model, params, tokens_BL, jnp.ones((2, 9)))
