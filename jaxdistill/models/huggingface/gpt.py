"""The families with LayerNorm and plain MLPs: GPT-2, OPT, and GPT-NeoX with Pythia."""

from typing import Any

from jaxdistill.models.design import AttentionDesign, Design, LayerNorm, LearnedPositions, PlainMLP, Rotary
from jaxdistill.models.huggingface.attributes import Attributes
from jaxdistill.models.huggingface.family import (
    Family,
    activation,
    activation_name,
    biased,
    norm_rows,
    rope,
    rope_attributes,
)
from jaxdistill.models.huggingface.tables import Row
from jaxdistill.models.variant import Variant

BIASED = AttentionDesign(qkv_bias=True, output_bias=True)


def _read_gpt2(a: Attributes) -> Variant:
    a.require("scale_attn_weights", True)
    a.require("scale_attn_by_inverse_layer_idx", False)
    a.require("add_cross_attention", False)
    for unused in ("n_ctx", "reorder_and_upcast_attn", "summary_activation", "summary_first_dropout",
                   "summary_proj_to_labels", "summary_type", "summary_use_proj"):  # fmt: skip
        a.take(unused, None)  # of precision, and of another head
    width, num_heads = a.number("n_embd"), a.number("n_head")
    return Variant(
        vocab_size=a.number("vocab_size"),
        num_layers=a.number("n_layer"),
        width=width,
        num_heads=num_heads,
        head_size=width // num_heads,
        mlp_width=a.number("n_inner", None) or 4 * width,
        tied=a.take("tie_word_embeddings", True),
        qk_norm=False,
        norm_eps=a.number("layer_norm_epsilon", 1e-5),
        base_width=width,
        design=Design(
            norm=LayerNorm(),
            position=LearnedPositions(a.number("n_positions")),
            attention=BIASED,
            mlp=PlainMLP(activation(a, "activation_function", "gelu_new"), bias=True),
            logit_scale=1.0,
        ),
    )


def _write_gpt2(config: Variant) -> dict[str, Any]:
    act = activation_name(config.design.mlp.activation)
    return {
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "n_positions": _rows_of_positions(config),
        "tie_word_embeddings": config.tied,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new" if act == "gelu_pytorch_tanh" else act,
    }


def _rows_of_positions(config: Variant) -> int:
    position = config.design.position
    return position.rows - position.offset if isinstance(position, LearnedPositions) else 0


def _gpt2_rows(config: Variant) -> list[Row]:
    layer = "transformer.h.{n}."
    rows = [Row("embed_VD", "transformer.wte.weight", "V D"), Row("position_PD", "transformer.wpe.weight", "P D")]
    rows += norm_rows("norm", "transformer.ln_f", bias=True)
    rows += norm_rows("layers/attention_norm", layer + "ln_1", bias=True)
    rows += norm_rows("layers/mlp_norm", layer + "ln_2", bias=True)
    for part, (own, heads) in enumerate((("q", "H"), ("k", "J"), ("v", "J"))):
        ours, theirs = f"layers/attention/{own}", layer + "attn.c_attn"
        rows.append(Row(f"{ours}_D{heads}K", f"{theirs}.weight", f"D c{heads}K", part, 3))
        rows.append(Row(f"{ours}_bias_{heads}K", f"{theirs}.bias", f"c{heads}K", part, 3))
    rows += biased("layers/attention/o_HKD", layer + "attn.c_proj", "HK D", "D", True)
    rows += biased("layers/mlp/up_DF", layer + "mlp.c_fc", "D F", "F", True)
    rows += biased("layers/mlp/down_FD", layer + "mlp.c_proj", "F D", "D", True)
    return rows if config.tied else [*rows, Row("head_VD", "lm_head.weight", "V D")]


def _read_opt(a: Attributes) -> Variant:
    width, num_heads = a.number("hidden_size"), a.number("num_attention_heads")
    a.require("do_layer_norm_before", True)
    a.require("_remove_final_layer_norm", False)
    a.require("layer_norm_elementwise_affine", True)
    a.require("word_embed_proj_dim", width, None)
    bias = a.take("enable_bias", True)
    return Variant(
        vocab_size=a.number("vocab_size"),
        num_layers=a.number("num_hidden_layers"),
        width=width,
        num_heads=num_heads,
        head_size=width // num_heads,
        mlp_width=a.number("ffn_dim"),
        tied=a.take("tie_word_embeddings", True),
        qk_norm=False,
        norm_eps=1e-5,  # fixed in the family
        base_width=width,
        design=Design(
            norm=LayerNorm(),
            position=LearnedPositions(a.number("max_position_embeddings") + 2, offset=2),
            attention=AttentionDesign(qkv_bias=bias, output_bias=bias),
            mlp=PlainMLP(activation(a, "activation_function", "relu"), bias=bias),
            logit_scale=1.0,
        ),
    )


def _write_opt(config: Variant) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "word_embed_proj_dim": config.width,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.mlp_width,
        "max_position_embeddings": _rows_of_positions(config),
        "tie_word_embeddings": config.tied,
        "enable_bias": config.design.attention.output_bias,
        "activation_function": activation_name(config.design.mlp.activation),
        "do_layer_norm_before": True,
    }


def _opt_rows(config: Variant) -> list[Row]:
    decoder, bias = "model.decoder.", config.design.attention.output_bias
    layer, ours = decoder + "layers.{n}.", "layers/attention/"
    rows = [Row("embed_VD", decoder + "embed_tokens.weight", "V D")]
    rows += [Row("position_PD", decoder + "embed_positions.weight", "P D")]
    rows += norm_rows("norm", decoder + "final_layer_norm", bias=True)
    rows += norm_rows("layers/attention_norm", layer + "self_attn_layer_norm", bias=True)
    rows += norm_rows("layers/mlp_norm", layer + "final_layer_norm", bias=True)
    rows += biased(ours + "q_DHK", layer + "self_attn.q_proj", "HK D", "HK", bias)
    rows += biased(ours + "k_DJK", layer + "self_attn.k_proj", "JK D", "JK", bias)
    rows += biased(ours + "v_DJK", layer + "self_attn.v_proj", "JK D", "JK", bias)
    rows += biased(ours + "o_HKD", layer + "self_attn.out_proj", "D HK", "D", bias)
    rows += biased("layers/mlp/up_DF", layer + "fc1", "F D", "F", bias)
    rows += biased("layers/mlp/down_FD", layer + "fc2", "D F", "D", bias)
    return rows if config.tied else [*rows, Row("head_VD", "lm_head.weight", "V D")]


def _read_neox(a: Attributes) -> Variant:
    width, num_heads, bias = a.number("hidden_size"), a.number("num_attention_heads"), a.take("attention_bias", True)
    base, position = rope(a, a.number("rotary_emb_base", 1e4), a.number("rotary_pct", 0.25))
    return Variant(
        vocab_size=a.number("vocab_size"),
        num_layers=a.number("num_hidden_layers"),
        width=width,
        num_heads=num_heads,
        head_size=width // num_heads,
        mlp_width=a.number("intermediate_size"),
        tied=a.take("tie_word_embeddings", False),
        qk_norm=False,
        rope_base=base,
        norm_eps=a.number("layer_norm_eps", 1e-5),
        base_width=width,
        design=Design(
            norm=LayerNorm(),
            position=position,
            attention=AttentionDesign(qkv_bias=bias, output_bias=bias),
            mlp=PlainMLP(activation(a, "hidden_act", "gelu"), bias=True),
            residual="parallel" if a.take("use_parallel_residual", True) else "sequential",
            logit_scale=1.0,
        ),
    )


def _write_neox(config: Variant) -> dict[str, Any]:
    position, rope = config.design.position, rope_attributes(config)
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "tie_word_embeddings": config.tied,
        "rotary_emb_base": rope.pop("rope_theta"),
        "rotary_pct": position.fraction if isinstance(position, Rotary) else 0,
        **rope,
        "layer_norm_eps": config.norm_eps,
        "attention_bias": config.design.attention.output_bias,
        "hidden_act": activation_name(config.design.mlp.activation),
        "use_parallel_residual": config.design.residual == "parallel",
    }


def _neox_rows(config: Variant) -> list[Row]:
    layer, bias = "gpt_neox.layers.{n}.", config.design.attention.output_bias
    rows = [Row("embed_VD", "gpt_neox.embed_in.weight", "V D")]
    rows += norm_rows("norm", "gpt_neox.final_layer_norm", bias=True)
    rows += norm_rows("layers/attention_norm", layer + "input_layernorm", bias=True)
    rows += norm_rows("layers/mlp_norm", layer + "post_attention_layernorm", bias=True)
    for part, (own, heads) in enumerate((("q", "H"), ("k", "J"), ("v", "J"))):
        ours, theirs = f"layers/attention/{own}", layer + "attention.query_key_value"
        rows.append(Row(f"{ours}_D{heads}K", f"{theirs}.weight", f"{heads}cK D", part, 3))
        if bias:
            rows.append(Row(f"{ours}_bias_{heads}K", f"{theirs}.bias", f"{heads}cK", part, 3))
    rows += biased("layers/attention/o_HKD", layer + "attention.dense", "D HK", "D", bias)
    rows += biased("layers/mlp/up_DF", layer + "mlp.dense_h_to_4h", "F D", "F", True)
    rows += biased("layers/mlp/down_FD", layer + "mlp.dense_4h_to_h", "D F", "D", True)
    return rows if config.tied else [*rows, Row("head_VD", "embed_out.weight", "V D")]


BUFFERS = (".attn.bias", ".attn.masked_bias")
GPT2 = Family("gpt2", "GPT2LMHeadModel", _read_gpt2, _write_gpt2, _gpt2_rows, "transformer.", BUFFERS)
OPT = Family("opt", "OPTForCausalLM", _read_opt, _write_opt, _opt_rows)
NEOX = Family(
    "gpt_neox", "GPTNeoXForCausalLM", _read_neox, _write_neox, _neox_rows, "gpt_neox.",
    (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)  # fmt: skip
