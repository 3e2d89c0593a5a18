"""Int8 layers: what they hold by definition, and that a model reads them as the numbers they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models import quantised
from jaxdistill.models.design import AttentionDesign, Design, Experts
from jaxdistill.models.transformer import Transformer
from jaxdistill.models.variant import Variant
from jaxdistill.parallel import rules

SHAPE = {"vocab_size": 40, "num_layers": 2, "width": 16, "num_heads": 4, "num_kv_heads": 2, "head_size": 8}
SUMMED = {  # the axes of a stacked matrix that its matmul sums
    "q_DHK": (1,), "k_DJK": (1,), "v_DJK": (1,), "o_HKD": (1, 2), "gate_DF": (1,), "up_DF": (1,), "down_FD": (1,),
    "gate_EDF": (2,), "up_EDF": (2,), "down_EFD": (2,),
}  # fmt: skip


@pytest.fixture(scope="module", params=["dense", "experts"])
def case(request):
    """(model, its parameters, the same with int8 layers)."""
    experts = {"mlp": Experts(num=4, active=2)} if request.param == "experts" else {}
    design = Design(attention=AttentionDesign(qkv_bias=True), **experts)
    model = Transformer(Variant(**SHAPE, mlp_width=24, vocab_multiple=8, design=design))
    draw, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32) / 4, shapes)
    return model, params, jax.jit(quantised.quantise)(params)


def flat(params):
    return {path: np.asarray(leaf) for path, _, leaf in dims.leaves(params)}


def matrices(params):
    """{path: array} of the matrices of the layers."""
    whole = flat(params)
    return {path: x for path, x in whole.items() if path.startswith("layers/") and name_of(path) in SUMMED}


def name_of(path):
    return path.rpartition("/")[2]


def scale_of(stored, path):
    """The scales of a matrix, with the dimensions that are summed as 1."""
    folder, _, name = path.rpartition("/")
    return np.expand_dims(stored[f"{folder}/{quantised.scale_name(name)}"], SUMMED[name])


def test_matrices_are_rounded_to_the_scale_of_their_channel_and_the_rest_is_untouched(case):
    _, params, narrow = case
    whole, stored, found = flat(params), flat(narrow), matrices(params)
    assert len(found) == 7
    for path, w in found.items():
        scale = scale_of(stored, path)
        assert stored[path].dtype == np.int8
        np.testing.assert_allclose(scale, np.abs(w).max(axis=SUMMED[name_of(path)], keepdims=True) / 127.5, rtol=1e-6)
        assert np.all(np.abs(w - stored[path] * scale) <= scale * 0.5001)  # the rounding of fp32 beside that to int8
    rest = stored.keys() - {path for path in stored if "_scale_" in path} - found.keys()
    assert rest == whole.keys() - found.keys()
    assert all(np.array_equal(stored[path], whole[path]) for path in rest)


def test_a_model_reads_int8_layers_as_the_numbers_they_stand_for(case):
    model, params, narrow = case
    stored = flat(narrow)
    exact = flat(params) | {path: stored[path] * scale_of(stored, path) for path in matrices(params)}
    rounded = jax.tree.unflatten(jax.tree.structure(params), [exact[path] for path, _, _ in dims.leaves(params)])
    tokens_BL = jnp.arange(20).reshape(2, 10) * 7 % 40
    hidden = jax.jit(lambda params: model.hidden(params, tokens_BL)[0])
    np.testing.assert_allclose(hidden(narrow), hidden(rounded), rtol=1e-4, atol=1e-5)
    assert np.abs(hidden(rounded) - hidden(params)).max() > 1e-3  # rounding is seen


def test_scales_have_letters_and_so_a_place_on_a_mesh(case):
    model, _, narrow = case
    dims.check(narrow, model.config.dims)
    sizes = (1, 2, 1, 1, 2)
    mesh = jax.sharding.AbstractMesh(sizes, ("data", "fsdp", "context", "expert", "tensor"))
    placed = rules.shardings(narrow, mesh)["layers"]["attention"]
    assert placed["q_scale_HK"].spec == rules.spec("NHK")
    assert placed["o_scale_D"].spec == rules.spec("ND")


def test_matrices_take_a_quarter_of_fp32(case):
    _, params, narrow = case
    before = sum(x.nbytes for x in matrices(params).values())
    saved = sum(x.nbytes for x in flat(params).values()) - sum(x.nbytes for x in flat(narrow).values())
    scales = sum(x.nbytes for path, x in flat(narrow).items() if "_scale_" in path)
    assert saved == before * 3 // 4 - scales


def test_without_the_package_the_answer_is_how_to_get_it(case, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "qwix", None)
    with pytest.raises(InputError, match=r"pip install 'jaxdistill\[quant\]'"):
        quantised.quantise(case[1])
