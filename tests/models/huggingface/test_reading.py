"""Checkpoints read whole or refused in one sentence; crafted with safetensors, so no torch is needed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file, save_file

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.families import gpt, llama
from jaxdistill.models.huggingface import reading
from jaxdistill.models.transformer import Transformer

CONFIG = llama.llama(37, 2, 16, 4, 2, 20)


def refused(directory, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        reading.open_checkpoint(directory)


def edit_json(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in (content | changes).items() if v != "gone"}))


def edit_tensors(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def split(directory, shards=3):
    """The checkpoint of one file as shards with an index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, directory / file)
        where |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return directory


def test_a_checkpoint_of_every_family_gives_its_configuration_and_all_of_its_numbers(family, craft):
    directory = craft(family)
    source = reading.open_checkpoint(directory)
    assert source.config == dataclasses.replace(family, vocab_multiple=128)
    params = reading.read_params(source)
    shapes = jax.eval_shape(Transformer(source.config).init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    # every number of every tensor is somewhere in the parameters, and nowhere twice
    theirs = np.sort(np.concatenate([x.ravel() for x in load_file(directory / "model.safetensors").values()]))
    ours = np.concatenate([np.ravel(x[..., :37, :] if "V" in own else x) for _, own, x in dims.leaves(params)])
    np.testing.assert_array_equal(np.sort(ours), theirs)
    np.testing.assert_array_equal(params["embed_VD"][37:], 0)


def test_matrices_are_transposed_and_cut_into_heads(craft):
    directory = craft(CONFIG)
    params, theirs = reading.read_params(reading.open_checkpoint(directory)), load_file(directory / "model.safetensors")
    q = theirs["model.layers.1.self_attn.q_proj.weight"]  # [H K, D]
    np.testing.assert_array_equal(params["layers"]["attention"]["q_DHK"][1], q.T.reshape(16, 4, 4))
    o = theirs["model.layers.0.self_attn.o_proj.weight"]  # [D, H K]
    np.testing.assert_array_equal(params["layers"]["attention"]["o_HKD"][0], o.T.reshape(4, 4, 16))
    np.testing.assert_array_equal(
        params["layers"]["mlp"]["down_FD"][1], theirs["model.layers.1.mlp.down_proj.weight"].T
    )
    np.testing.assert_array_equal(params["head_VD"][:37], theirs["lm_head.weight"])


def test_fused_matrices_are_taken_apart_as_their_family_fuses_them(craft):
    neox, gpt2 = craft(gpt.pythia(2, 32, 2, 37), name="neox"), craft(gpt.gpt2(2, 16, 4, 37), name="gpt2")
    k = reading.read_params(reading.open_checkpoint(neox))["layers"]["attention"]["k_DJK"][1]
    fused = load_file(neox / "model.safetensors")["gpt_neox.layers.1.attention.query_key_value.weight"]
    np.testing.assert_array_equal(k[:, 1], fused[48 + 16 : 48 + 32].T)  # head 1: 16 rows each of q, k, v
    v = reading.read_params(reading.open_checkpoint(gpt2))["layers"]["attention"]["v_DJK"][0]
    fused = load_file(gpt2 / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
    np.testing.assert_array_equal(v[:, 3], fused[:, 32 + 12 : 32 + 16])  # columns: all of q, all of k, all of v


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_numbers_keep_their_dtype_or_take_the_one_that_is_asked_for(dtype, craft):
    source = reading.open_checkpoint(craft(CONFIG, dtype))
    params, wide = reading.read_params(source), reading.read_params(source, dtype=jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)} == {source.dtype}
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.astype(np.float32), y), params, wide)


def test_shards_are_as_one_file(craft):
    whole = reading.read_params(reading.open_checkpoint(craft(CONFIG, name="whole")))
    parts = reading.read_params(reading.open_checkpoint(split(craft(CONFIG, name="parts"))))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_arrays_on_devices_are_those_of_the_host(craft):
    source = reading.open_checkpoint(craft(CONFIG)).with_vocab_size(31)
    place = SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda x: place, jax.eval_shape(Transformer(source.config).init, jax.random.key(0)))
    host, device = reading.read_params(source), reading.read_params(source, shardings)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(device))
    jax.tree.map(np.testing.assert_array_equal, host, device)
    np.testing.assert_array_equal(host["head_VD"][31:], 0)


def test_a_tokenizer_larger_than_the_embedding_is_refused(craft):
    with pytest.raises(InputError, match=r"^the tokenizer has 38 tokens and the embedding 37 rows: they do not belong"):
        reading.open_checkpoint(craft(CONFIG)).with_vocab_size(38)


def test_names_without_their_prefix_are_understood(craft):
    directory = craft(gpt.gpt2(2, 16, 4, 37))  # as the checkpoint on the hub has them
    with_prefix = reading.read_params(reading.open_checkpoint(directory))
    edit_tensors(directory, lambda t: [t.update({k.removeprefix("transformer."): t.pop(k)}) for k in list(t)])
    jax.tree.map(np.testing.assert_array_equal, with_prefix, reading.read_params(reading.open_checkpoint(directory)))


def test_buffers_and_the_copy_of_a_tied_embedding_are_passed_over(craft):
    directory = craft(dataclasses.replace(CONFIG, tied=True))
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
        "lm_head.weight": np.ones((37, 16), np.float32),
    }
    edit_tensors(directory, lambda t: t.update(extra))
    assert "head_VD" not in reading.read_params(reading.open_checkpoint(directory))


def test_a_truncated_file_is_refused(craft):
    file = craft(CONFIG) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(file.parent, r".*model\.safetensors is damaged or cut short \(.*\): download it again")
    file.write_bytes(b"\x10")
    refused(file.parent, r".*model\.safetensors is damaged or cut short \(.*\): download it again")


def test_a_missing_shard_is_refused(craft):
    directory = split(craft(CONFIG))
    (directory / "model-00002-of-00003.safetensors").unlink()
    refused(directory, r".*model-00002-of-00003\.safetensors is missing, which .*index\.json names: download it")


def test_a_shard_that_does_not_hold_what_the_index_says_is_refused(craft):
    directory = split(craft(CONFIG))
    index = directory / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={k: v for k, v in where.items() if k != "model.norm.weight"})
    refused(
        directory, r".*index\.json and its shards do not hold the same tensors \(model\.norm\.weight\): download .*"
    )


def test_a_directory_without_weights_is_refused(craft):
    directory = craft(CONFIG)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    refused(
        directory, r".* holds no model\.safetensors and no model\.safetensors\.index\.json; other formats are not read"
    )


@pytest.mark.parametrize(("dtype", "name"), [(np.float64, "F64"), (np.int8, "I8")])
def test_another_dtype_is_refused(dtype, name, craft):
    directory = craft(CONFIG)
    edit_tensors(directory, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype(dtype)}))
    refused(directory, rf".*: model\.norm\.weight is stored as {name}; only F32, F16, BF16 are read")


def test_a_missing_tensor_is_refused(craft):
    directory = craft(CONFIG)
    edit_tensors(directory, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    refused(
        directory,
        r".* lacks model\.layers\.1\.mlp\.up_proj\.weight \(1 tensors in all\), which its config\.json asks for",
    )


def test_an_unexpected_tensor_is_refused(craft):
    directory = craft(CONFIG)
    edit_tensors(directory, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32)}))
    refused(
        directory, r".* has model\.layers\.0\.self_attn\.q_proj\.bias \(1 tensors in all\), which its config\.json .*"
    )


def test_a_configuration_that_does_not_fit_the_tensors_is_refused(craft):
    directory = craft(CONFIG)
    edit_json(directory / "config.json", intermediate_size=24)
    refused(directory, r".*mlp\.gate_proj\.weight has the shape \[20, 16\], and by config\.json it is \[24, 16\]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, r".* holds a model of type 'bert'; those that are understood are llama, mistral, .*"),
        ({"model_type": "gone"}, r".* holds a model of type None; those that are understood are llama, mistral, .*"),
        ({"mystery": 1, "other": 2}, r".* has attributes that are not understood \(mystery, other\), and .*"),
        ({"quantization_config": {"bits": 4}}, r".* not understood \(quantization_config\), and .*"),
        ({"hidden_act": "mish"}, r".*config\.json: hidden_act is 'mish', and only silu, .* are understood"),
        ({"hidden_size": "gone"}, r".* has no attribute 'hidden_size', which says what the model is: add it"),
        ({"hidden_size": "16"}, r".*config\.json: hidden_size is '16', which is not a number"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, r".*: positions are scaled by 'yarn'; only .*"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "more": 1}}, r".*scaling has attributes .*\(more\).*"),
        ({"rope_scaling": 2}, r".*: rope_scaling is 2, which is not a group of attributes"),
        ({"num_key_value_heads": 3}, r"model\.num_heads \(4\) must be a multiple of model\.num_kv_heads \(3\)"),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_understood_is_refused_in_one_sentence(changes, message, craft):
    directory = craft(CONFIG)
    edit_json(directory / "config.json", **changes)
    refused(directory, message)


@pytest.mark.parametrize(
    ("model", "changes", "name"),
    [
        (gpt.gpt2(2, 16, 4, 37), {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (gpt.gpt2(2, 16, 4, 37), {"scale_attn_weights": False}, "scale_attn_weights"),
        (gpt.opt(2, 16, 4, 37), {"do_layer_norm_before": False}, "do_layer_norm_before"),
        (gpt.opt(2, 16, 4, 37), {"word_embed_proj_dim": 8}, "word_embed_proj_dim"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_the_transformer_does_not_compute_is_named(model, changes, name, craft):
    directory = craft(model)
    edit_json(directory / "config.json", **changes)
    refused(directory, rf".*config\.json: {name} is .*, and models of this family can be read with .* only")


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_config_that_is_no_json_object_is_refused(content, craft):
    directory = craft(CONFIG)
    (directory / "config.json").write_text(content)
    refused(directory, r".*config\.json (is not JSON: .*|holds a list, not an object)")


def test_a_directory_without_a_config_is_refused(tmp_path):
    refused(tmp_path, r"cannot read .*config\.json: No such file or directory")
