"""Models written for transformers: which family says a configuration, and what is read back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.models.design import AttentionDesign, Design, GatedMLP, LayerNorm
from jaxdistill.models.families import llama
from jaxdistill.models.huggingface import reading, writing
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.models.variant import Variant

OWN = Config(
    vocab_size=37, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_size=6, mlp_width=20, base_width=4
)


def logits(config, params):
    model, tokens_BL = Transformer(config), jnp.asarray(np.random.default_rng(0).integers(37, size=(2, 9)), jnp.int32)
    return jax.jit(lambda p: model.head(p, model.hidden(p, tokens_BL)[0]).logits())(params)[..., :37]


def test_what_was_written_is_read_as_it_was(family, draw_params, tmp_path):
    params = draw_params(family)
    written = writing.write_checkpoint(tmp_path, family, params, positions=64)
    source = reading.open_checkpoint(tmp_path)
    assert source.family == written and source.config == family
    back = reading.read_params(source)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(
            x[:37] if x.ndim == 2 and len(x) == 128 else x, y[:37] if y.ndim == 2 and len(y) == 128 else y
        ),
        params,
        back,
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_our_own_models_are_those_of_a_public_architecture_with_their_logits(tied, qk_norm, draw_params, tmp_path):
    config = dataclasses.replace(OWN, tied=tied, qk_norm=qk_norm)
    params = draw_params(config)
    family = writing.write_checkpoint(tmp_path, config, params, positions=128)
    assert family.architecture == ("Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM")
    source = reading.open_checkpoint(tmp_path)
    assert source.config.tied == tied and source.positions == 128
    ours, theirs = logits(config, params), logits(source.config, reading.read_params(source))
    assert Transformer(config).head(params, jnp.zeros((1, 1, 16))).scale == 2 / 16  # so there was something to fold
    # the factor enters before the product of 16 terms, not after
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2 * np.sqrt(16) * 2.0**-24 * np.abs(ours).max() * 4)


@pytest.mark.parametrize("design", [Design(norm=LayerNorm(), logit_scale=0.5), Design(logit_scale=0.5)], ids=str)
def test_the_factor_on_the_logits_goes_into_gain_and_bias_of_the_last_norm(design, draw_params):
    config = Variant(**dataclasses.asdict(OWN), design=design)
    params = draw_params(config)
    folded, changed = writing.with_plain_logits(config, params)
    assert folded.design.logit_scale == 1 and set(changed) == set(params)
    np.testing.assert_allclose(logits(folded, changed), logits(config, params), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (dataclasses.replace(OWN, softcap=5.0), "softcap"),
        (Variant(**dataclasses.asdict(OWN), design=Design(norm=LayerNorm())), "design.norm"),
        (Variant(**dataclasses.asdict(OWN), design=Design(residual="parallel")), "design.residual"),
        (Variant(**dataclasses.asdict(OWN), design=Design(mlp=GatedMLP(bias=True))), "qk_norm"),
        (Variant(**dataclasses.asdict(OWN), design=Design(embed_scale=3.0)), "design.embed_scale"),
        (
            Variant(**dataclasses.asdict(OWN), design=Design(attention=AttentionDesign(scale=0.1))),
            "design.attention.scale",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_model_that_no_architecture_computes_is_refused_with_what_sets_it_apart(config, named, draw_params, tmp_path):
    with pytest.raises(
        InputError, match=rf"^no architecture of transformers computes this model: .* has another {named}"
    ):
        writing.write_checkpoint(tmp_path, config, draw_params(config), positions=64)
    assert list(tmp_path.iterdir()) == []


def test_the_preferred_family_is_taken_where_several_compute_the_same():
    config = llama.llama(37, 2, 16, 4, 2, 20)
    assert writing.find_family(config)[0].model_type == "llama"
    assert writing.find_family(config, "mistral")[0].model_type == "mistral"
    assert writing.find_family(config, "gpt2")[0].model_type == "llama"  # which cannot compute it


def test_large_models_are_written_in_shards_with_an_index(draw_params, tmp_path):
    config = llama.llama(37, 2, 16, 4, 2, 20)
    params = draw_params(config)
    writing.write_checkpoint(tmp_path, config, params, positions=64, shard_bytes=4000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert max((tmp_path / file).stat().st_size for file in files) < 4000 + 4096  # and a header
    source = reading.open_checkpoint(tmp_path)
    assert index["metadata"]["total_size"] == sum(4 * int(np.prod(t.shape)) for t in source.tensors.values())
    np.testing.assert_array_equal(logits(config, params), logits(config, reading.read_params(source)))


def test_a_narrow_model_stays_narrow(draw_params, tmp_path):
    config = llama.llama(37, 2, 16, 4, 2, 20)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw_params(config))
    writing.write_checkpoint(tmp_path, config, params, positions=64, more={"eos_token_id": 3})
    source, attributes = reading.open_checkpoint(tmp_path), json.loads((tmp_path / "config.json").read_text())
    assert source.dtype == jnp.bfloat16 and attributes["torch_dtype"] == "bfloat16" and attributes["eos_token_id"] == 3
