"""The decoder against a forward pass in float64 NumPy, written with loops and complex rotations, and its properties."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models import rotary
from jaxdistill.models.transformer import Config, Transformer

CONFIG = Config(
    vocab_size=37, num_layers=3, width=16, num_heads=4, num_kv_heads=2, head_size=6, mlp_width=20, vocab_multiple=8
)
# Each of 3 layers makes some 6 reductions of at most 37 terms one after the other, each off by 2 sqrt(n) u.
FP32 = 3 * 6 * 2 * math.sqrt(37) * 2.0**-24


def fresh_params(config):
    # "rbg" draws compile in a third of the time
    return jax.jit(Transformer(config).init)(jax.random.key(0, impl="rbg"))


def random_params(config):
    """Parameters in which no gain is one, so that none can be forgotten."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(Transformer(config).init, jax.random.key(0))

    def draw(own, x):
        is_gain, is_embedding = len(own.removeprefix("N")) == 1, "V" in own
        spread = 0.2 if is_gain else 1.0 if is_embedding else 0.3
        return jnp.asarray(is_gain + spread * rng.normal(size=x.shape), jnp.float32)

    return jax.tree.map(draw, dims.tree_letters(shapes), shapes)


def random_tokens(shape=(2, 9), seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(CONFIG.vocab_size, size=shape), jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "keep"))
def hidden(model, params, *args, keep=()):
    return model.hidden(params, *args, keep=keep)


@functools.partial(jax.jit, static_argnames="model")
def logits(model, params, h_BLD):
    return model.head(params, h_BLD).logits()


def normalise(x, gain, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain


def rotate(x_LK, position_L, base):
    """Pairs (i, i + K/2) as complex numbers, turned by position * base^(-2i/K)."""
    half = x_LK.shape[-1] // 2
    turn = np.exp(1j * np.outer(position_L, base ** (-2 * np.arange(half) / x_LK.shape[-1])))
    z = (x_LK[:, :half] + 1j * x_LK[:, half:]) * turn
    return np.concatenate([z.real, z.imag], axis=-1)


def numpy_forward(config, params, tokens_L, segment_L, position_L):
    """One row in float64: the output of every layer, the last hidden states, and the logits."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x, L, outputs = params["embed_VD"][tokens_L], len(tokens_L), []
    for n in range(config.num_layers):
        layer = jax.tree.map(lambda p, n=n: p[n], params["layers"])
        own, mlp = layer["attention"], layer["mlp"]
        a, attended = normalise(x, layer["attention_norm_D"], config.norm_eps), 0
        for h in range(config.num_heads):
            j = h // (config.num_heads // config.num_kv_heads)
            q, k, v = a @ own["q_DHK"][:, h], a @ own["k_DJK"][:, j], a @ own["v_DJK"][:, j]
            if config.qk_norm:
                q, k = normalise(q, own["q_norm_K"], config.norm_eps), normalise(k, own["k_norm_K"], config.norm_eps)
            q, k = rotate(q, position_L, config.rope_base), rotate(k, position_L, config.rope_base)
            mixed = np.zeros_like(v)
            for t in range(L):
                seen = [s for s in range(t + 1) if segment_L[s] == segment_L[t]]
                score = np.array([q[t] @ k[s] for s in seen]) / math.sqrt(config.head_size)
                share = np.exp(score - score.max())
                mixed[t] = share / share.sum() @ v[seen]
            attended = attended + mixed @ own["o_HKD"][h]
        x = x + attended
        m = normalise(x, layer["mlp_norm_D"], config.norm_eps)
        gate = m @ mlp["gate_DF"]
        x = x + (gate / (1 + np.exp(-gate)) * (m @ mlp["up_DF"])) @ mlp["down_FD"]
        outputs.append(x)
    h = normalise(x, params["norm_D"], config.norm_eps)
    embedding = params["embed_VD" if config.tied else "head_VD"][: config.vocab_size]
    z = math.sqrt(config.base_width) / config.width * h @ embedding.T
    return outputs, h, z if config.softcap is None else config.softcap * np.tanh(z / config.softcap)


def assert_close(got, expected, tolerance=FP32):
    """Equal up to `tolerance` of the largest entry."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


PACKED = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3], [4, 4, 4, 4, 4, 4, 4, 0, 0]], np.int32)
POSITION = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 1], [5, 6, 7, 8, 9, 10, 11, 0, 1]], np.int32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": False},
        {"num_kv_heads": 4, "tied": False},
        {"num_kv_heads": 1, "softcap": 2.0},
        {"tied": False, "softcap": 5.0, "qk_norm": False, "base_width": 64, "rope_base": 100.0, "norm_eps": 1e-2},
    ],
    ids=str,
)
def test_hidden_states_kept_layers_and_logits_equal_a_float64_forward_pass(changes):
    config = dataclasses.replace(CONFIG, **changes)
    model, params, tokens_BL = Transformer(config), random_params(config), random_tokens()
    h_BLD, kept = hidden(model, params, tokens_BL, PACKED, POSITION, keep=(0, 2, -2))
    z_BLV = logits(model, params, h_BLD)
    assert z_BLV.shape[-1] == config.padded_vocab_size == 40
    for b in range(2):
        outputs, h, z = numpy_forward(config, params, tokens_BL[b], PACKED[b], POSITION[b])
        assert_close(h_BLD[b], h)
        assert_close(z_BLV[b, :, :37], z)
        for own, n in ((0, 0), (2, 2), (-2, 1)):
            assert_close(kept[own][b], outputs[n])


@pytest.mark.parametrize("segment_BL", [None, PACKED[:1]], ids=["one document", "packed"])
def test_a_position_depends_on_itself_and_those_before_it_in_its_document_and_on_no_other(segment_BL):
    # Every position holds another token, so the gradient in row s of the embedding is the gradient in position s.
    model, params, L = Transformer(dataclasses.replace(CONFIG, tied=False)), random_params(CONFIG), 9
    direction_D = np.random.default_rng(1).normal(size=16).astype(np.float32)

    @jax.jit
    @jax.jacrev
    def jacobian(embed_VD):
        h_BLD, _ = model.hidden(params | {"embed_VD": embed_VD}, jnp.arange(L)[None], segment_BL)
        return h_BLD[0] @ direction_D

    size_LM = np.abs(jacobian(params["embed_VD"])).max(-1)[:, :L]
    segment_L = np.zeros(L) if segment_BL is None else segment_BL[0]
    sees_LM = np.tril(segment_L[:, None] == segment_L[None, :])
    assert np.all(size_LM[~sees_LM] == 0) and np.all(size_LM[sees_LM] > 1e-4)


def test_documents_packed_into_a_row_are_as_documents_in_rows_of_their_own():
    model, params, tokens_BL = Transformer(CONFIG), random_params(CONFIG), random_tokens((1, 9))
    packed_BLD, _ = hidden(model, params, tokens_BL, PACKED[:1], POSITION[:1])
    for start, stop in ((0, 4), (4, 7), (7, 9)):
        alone_BLD, _ = hidden(model, params, tokens_BL[:, start:stop])
        assert_close(packed_BLD[:, start:stop], alone_BLD)


def test_what_the_padding_holds_changes_no_bit_of_the_rest():
    model, params, tokens_BL = Transformer(CONFIG), random_params(CONFIG), random_tokens()
    other_BL = jnp.where(PACKED == 0, 11, tokens_BL)
    assert not np.array_equal(tokens_BL, other_BL)
    one_BLD, other_BLD = (hidden(model, params, t, PACKED, POSITION)[0] for t in (tokens_BL, other_BL))
    np.testing.assert_array_equal(one_BLD[PACKED != 0], other_BLD[PACKED != 0])
    assert not np.array_equal(one_BLD, other_BLD)


def test_only_differences_of_positions_matter():
    model, params, tokens_BL = Transformer(CONFIG), random_params(CONFIG), random_tokens()
    place_BL = jnp.broadcast_to(jnp.arange(9), (2, 9))
    default_BLD, shifted_BLD, stretched_BLD = (
        hidden(model, params, tokens_BL, None, p)[0] for p in (None, place_BL + 100, 2 * place_BL)
    )
    assert_close(shifted_BLD, default_BLD, FP32 + 2 * 109 * 2.0**-24)  # an angle of 109 is rounded by 109 u
    assert np.abs(stretched_BLD - default_BLD).max() > 0.01


def test_rotary_angles_stay_exact_to_their_rounding_at_long_range():
    position_BL = jnp.asarray([[0, 1, 4095, 131_071]])
    cos_BLK, sin_BLK = rotary.angles(position_BL, 8, 500_000.0)
    angle_BLK = np.asarray(position_BL, np.float64)[..., None] * 500_000.0 ** (-2 * np.arange(4) / 8)
    tolerance = 4 * 2.0**-24 * np.maximum(angle_BLK, 1)
    assert np.all(np.abs(cos_BLK - np.cos(angle_BLK)) <= tolerance)
    assert np.all(np.abs(sin_BLK - np.sin(angle_BLK)) <= tolerance)


def test_layers_that_nobody_keeps_are_not_stored():
    model, params, tokens_BL = Transformer(CONFIG), random_params(CONFIG), random_tokens((5, 7))
    stacked = "f32[3,5,7,16]"  # N, B, L, D

    def loss(params, tokens_BL):
        return model.hidden(params, tokens_BL)[0].sum()

    assert stacked in str(jax.make_jaxpr(jax.grad(loss))(params, tokens_BL))  # so the search can find it
    assert stacked not in str(jax.make_jaxpr(loss)(params, tokens_BL))
    assert stacked not in jax.jit(loss).lower(params, tokens_BL).compile().as_text()


@pytest.mark.parametrize("keep", [(3,), (0, -4), (100,)])
def test_a_layer_that_the_model_does_not_have_cannot_be_kept(keep):
    with pytest.raises(InputError, match=f"^layer {keep[-1]} is asked for, of a model with 3 layers$"):
        Transformer(CONFIG).hidden(random_params(CONFIG), random_tokens(), keep=keep)


def test_recomputing_layers_changes_no_value_and_no_gradient_and_saves_memory():
    params, tokens_BL = random_params(CONFIG), random_tokens()

    def compiled(remat):
        model = Transformer(CONFIG, remat=remat)

        def loss(params, tokens_BL):
            return jnp.sin(model.hidden(params, tokens_BL)[0]).sum()

        return jax.jit(jax.value_and_grad(loss)).lower(params, tokens_BL).compile()

    plain, remat = compiled(False), compiled(True)
    jax.tree.map(assert_close, remat(params, tokens_BL), jax.tree.map(np.asarray, plain(params, tokens_BL)))
    assert remat.memory_analysis().temp_size_in_bytes < 0.7 * plain.memory_analysis().temp_size_in_bytes


def test_in_bfloat16_parameters_gradients_and_logits_stay_float32():
    model, params, tokens_BL = Transformer(CONFIG, dtype=jnp.bfloat16), random_params(CONFIG), random_tokens()
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))

    def loss(params):
        h_BLD, kept = model.hidden(params, tokens_BL, keep=(1,))
        z_BLV = model.head(params, h_BLD).logits()
        return z_BLV[..., :37].mean(), (h_BLD, kept[1], z_BLV)

    gradient, (h_BLD, kept_BLD, z_BLV) = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert (h_BLD.dtype, kept_BLD.dtype, z_BLV.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(gradient))
    exact_BLD, _ = hidden(Transformer(CONFIG), params, tokens_BL)
    # some 10 roundings by 2^-8 in each of 3 layers, in random directions
    assert np.linalg.norm(h_BLD - exact_BLD) < 2 * math.sqrt(30) * 2.0**-8 * np.linalg.norm(exact_BLD)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": False}, {"num_kv_heads": 4, "tied": False}], ids=str)
def test_parameters_are_as_many_as_the_formulas_say(changes):
    config = dataclasses.replace(CONFIG, vocab_multiple=1, **changes)
    params = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))  # noqa: E731
    assert count(params) == config.num_params_total
    assert count((params["layers"], params["norm_D"])) == config.num_params
    padded = dataclasses.replace(config, vocab_multiple=128)
    assert (padded.num_params, padded.num_params_total) == (config.num_params, config.num_params_total)


def test_every_parameter_has_the_shape_of_its_letters():
    for tied in (True, False):
        config = dataclasses.replace(CONFIG, tied=tied)
        dims.check(jax.eval_shape(Transformer(config).init, jax.random.key(0)), config.dims)


def test_fresh_parameters_have_unit_embeddings_and_matrices_of_variance_one_over_fan_in():
    config = Config(300, 2, 64, 4, 16, 160, num_kv_heads=2, tied=False)
    params = fresh_params(config)
    fan_in = {"q_DHK": 64, "k_DJK": 64, "v_DJK": 64, "o_HKD": 64, "gate_DF": 64, "up_DF": 64, "down_FD": 160}
    for path, own, x in dims.leaves(params):
        name = path.rpartition("/")[2]
        if len(own.removeprefix("N")) == 1:
            assert np.array_equal(x, np.ones_like(x)), path
            continue
        # the relative error of a standard deviation of n normal draws is 1 / sqrt(2 n); four of those
        np.testing.assert_allclose(np.std(x) * math.sqrt(fan_in.get(name, 1)), 1, rtol=4 / math.sqrt(2 * x.size))
        assert own[0] != "N" or not np.array_equal(x[0], x[1]), f"{path}: layers share their draws"
    assert not np.array_equal(params["embed_VD"], params["head_VD"])


@pytest.mark.parametrize("width", [16, 64, 256])
def test_fresh_logits_have_unit_variance_at_the_base_width_and_less_above(width):
    config = dataclasses.replace(CONFIG, vocab_size=500, width=width, base_width=64, tied=False)
    model, params = Transformer(config), fresh_params(config)
    z_BLV = logits(model, params, hidden(model, params, random_tokens((4, 16)))[0])[..., :500]
    np.testing.assert_allclose(np.std(z_BLV), math.sqrt(64 / width), rtol=0.1)


def test_the_rate_of_hidden_matrices_alone_falls_with_the_width():
    config = dataclasses.replace(CONFIG, width=64, base_width=16, tied=False)
    letters = dims.tree_letters(jax.eval_shape(Transformer(config).init, jax.random.key(0)))
    multiplier = {path: config.lr_multiplier(own) for path, _, own in dims.leaves(letters)}
    hidden_matrices = {f"layers/attention/{name}" for name in ("q_DHK", "k_DJK", "v_DJK", "o_HKD")}
    hidden_matrices |= {f"layers/mlp/{name}" for name in ("gate_DF", "up_DF", "down_FD")}
    assert {path for path, factor in multiplier.items() if factor == 0.25} == hidden_matrices
    assert {path for path, factor in multiplier.items() if factor == 1} == multiplier.keys() - hidden_matrices


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "model.num_layers is 0; it must be at least 1"),
        ({"vocab_size": -1}, "model.vocab_size is -1; it must be at least 1"),
        ({"num_kv_heads": 3}, r"model.num_heads \(4\) must be a multiple of model.num_kv_heads \(3\)"),
        ({"num_kv_heads": -2}, "model.num_kv_heads is -2; it must be at least 1"),
        ({"head_size": 5}, "model.head_size is 5; rotary positions need an even one"),
        ({"base_width": 0}, "model.base_width is 0; it must be at least 1"),
        ({"vocab_multiple": 0}, "model.vocab_multiple is 0; it must be at least 1"),
        ({"softcap": 0.0}, "model.softcap is 0.0; it must be above 0"),
        ({"norm_eps": -1e-6}, "model.norm_eps is -1e-06; it must be above 0"),
        ({"rope_base": float("nan")}, "model.rope_base is nan; it must be above 0"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_is_refused_in_one_sentence(changes, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        dataclasses.replace(CONFIG, **changes)


def test_a_model_without_grouped_heads_need_not_say_so():
    assert Config(37, 1, 16, 4, 6, 20) == Config(37, 1, 16, 4, 6, 20, num_kv_heads=4)
