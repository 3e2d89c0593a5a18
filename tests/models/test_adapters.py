"""Low-rank adapters: nothing at first, a matrix of low rank after that, and no gradient of what they stand beside."""

import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models import adapters
from jaxdistill.models.design import AttentionDesign, Design, Experts, LayerNorm, PlainMLP
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.models.variant import Variant
from jaxdistill.parallel import rules

SIZES = {"vocab_size": 40, "num_layers": 3, "width": 20, "num_heads": 4, "num_kv_heads": 2, "head_size": 6,
         "mlp_width": 28}  # fmt: skip
RANK, SCALE = 8, 0.5
PLAIN = Design(norm=LayerNorm(), mlp=PlainMLP("gelu", bias=True), attention=AttentionDesign(True, True))
CONFIGS = {"ours": Config(**SIZES), "gpt": Variant(**SIZES, design=PLAIN)}
MATRICES = ("q_DHK", "k_DJK", "v_DJK", "o_HKD", "gate_DF", "up_DF", "down_FD")
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9))


def case(name, scale=SCALE):
    """A model, its parameters, and adapters of which B is not zero."""
    model = Transformer(CONFIGS[name], adapter_scale=scale)
    params = model.init(jax.random.key(0, impl="rbg"))
    own = adapters.fresh(jax.random.key(1, impl="rbg"), params, RANK)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, x: x if "_a_" in path[-1].key else jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape),
        own,
    )
    return model, params, own, moved


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fresh_model_is_its_base_and_a_folded_one_computes_what_the_adapted_does(name):
    model, params, own, moved = case(name)
    hidden = jax.jit(lambda params: model.hidden(params, TOKENS)[0])
    base_BLD = hidden(params)
    # up to the rounding of matmuls that XLA merges
    np.testing.assert_allclose(hidden(adapters.join(params, own)), base_BLD, rtol=1e-4, atol=1e-5)
    adapted_BLD = hidden(adapters.join(params, moved))
    assert np.abs(adapted_BLD - base_BLD).max() > 0.1
    folded = adapters.fold(adapters.join(params, moved), SCALE)
    assert jax.tree.structure(folded) == jax.tree.structure(params)
    np.testing.assert_allclose(hidden(folded), adapted_BLD, rtol=1e-4, atol=1e-5)


def test_what_a_fresh_adapter_adds_is_nothing_to_the_bit():
    _, params, own, _ = case("ours")
    module = nnx.Module()
    module.mlp = nnx.Module()
    layer = jax.tree.map(lambda x: x[0], own["layers"])
    adapters.attach(module, {"mlp": layer["mlp"]}, 2.0)
    x_BLD = jax.random.normal(jax.random.key(2), (2, 9, 20))
    out_BLF = x_BLD @ params["layers"]["mlp"]["up_DF"][0]
    np.testing.assert_array_equal(adapters.add_adapter(out_BLF, x_BLD, module.mlp, "up_DF"), out_BLF)
    assert adapters.add_adapter(out_BLF, x_BLD, module.mlp, "other_DF") is out_BLF


@pytest.mark.parametrize("name", CONFIGS)
def test_every_matrix_of_a_layer_has_two_adapters_of_its_letters_and_nothing_else_has_any(name):
    _, _, own, _ = case(name)
    dims.check(own, CONFIGS[name].dims | {"R": RANK})
    for _, letters, _ in dims.leaves(own):
        rules.spec(letters)
    sizes = CONFIGS[name].dims
    expected = 0
    for matrix in (m for m in MATRICES if name == "ours" or m != "gate_DF"):
        whole = math.prod(sizes[letter] for letter in matrix.rpartition("_")[2])
        assert {*adapters.names(matrix)} <= {path.rpartition("/")[2] for path, _, _ in dims.leaves(own)}
        expected += 3 * RANK * (20 + whole // 20)  # each leads to the width or from it
    assert sum(x.size for x in jax.tree.leaves(own)) == expected
    a = np.concatenate([np.ravel(x) for path, _, x in dims.leaves(own) if "_a_" in path])
    assert abs(a.std() * RANK - 1) < 0.05


def test_no_gradient_of_a_base_matrix_is_ever_formed():
    model, params, own, _ = case("ours")

    def loss(own, params):
        return jnp.sum(model.hidden(adapters.join(params, own), TOKENS)[0] ** 2)

    def made(jaxpr):
        for eqn in jaxpr.eqns:
            yield from ((eqn.primitive.name, var.aval.shape) for var in eqn.outvars)
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from made(inner)

    shapes = {x.shape[1:] for path, _, x in dims.leaves(params["layers"]) if path.rpartition("/")[2] in MATRICES}
    shapes |= {shape[::-1] for shape in shapes}  # as a matmul may leave them

    def products(argnums):
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums))(own, params).jaxpr
        return [shape for name, shape in made(jaxpr) if name in ("dot_general", "add_any") and shape in shapes]

    assert products((0, 1)) and not products(0)


def test_parts_of_a_tree_are_put_together_as_they_were():
    _, params, own, _ = case("ours")
    whole = adapters.join(params, own)
    mine, rest = adapters.divide(whole, adapters.is_adapter)
    assert jax.tree.structure(mine) == jax.tree.structure(own)
    assert jax.tree.structure(rest) == jax.tree.structure(params)
    assert adapters.divide({"a": {"b": 1}}, lambda path: True) == ({"a": {"b": 1}}, {})


def test_experts_have_no_adapters():
    config = Variant(**SIZES, design=Design(mlp=Experts(num=4, active=2)))
    params = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    with pytest.raises(InputError, match="without a mixture of experts"):
        adapters.fresh(jax.random.key(0), params, RANK)
