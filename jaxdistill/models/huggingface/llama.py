"""Llama, and the families that grew from it: Mistral, Qwen 2 and 3, Mixtral, Qwen 3 with experts."""

from typing import Any

from jaxdistill.models.design import AttentionDesign, Design, Experts, GatedMLP, Window
from jaxdistill.models.huggingface.attributes import Attributes
from jaxdistill.models.huggingface.family import (
    Family,
    activation,
    activation_name,
    biased,
    layer_types,
    norm_rows,
    rope,
    rope_attributes,
    size_attributes,
    sizes,
    window,
)
from jaxdistill.models.huggingface.tables import Row
from jaxdistill.models.variant import Variant


def _model(a: Attributes, known: dict[str, Any], *, theta: float = 1e4, attention=AttentionDesign(), **more) -> Variant:
    base, position = rope(a, theta)
    qk_norm, mlp = more.pop("qk_norm", False), more.pop("mlp", None)
    mlp = mlp or GatedMLP(activation(a, "hidden_act", "silu"), more.pop("mlp_bias", False))
    width = more.pop("mlp_width", None) or a.number("intermediate_size")
    design = Design(position=position, attention=attention, mlp=mlp, logit_scale=1.0)
    return Variant(**known, mlp_width=width, qk_norm=qk_norm, rope_base=base, design=design)


def _read_llama(a: Attributes) -> Variant:
    bias = a.take("attention_bias", False)
    return _model(
        a, sizes(a), attention=AttentionDesign(qkv_bias=bias, output_bias=bias), mlp_bias=a.take("mlp_bias", False)
    )


def _read_mistral(a: Attributes) -> Variant:
    size = a.number("sliding_window", 4096, or_none=True)  # absent means the default of transformers, null none
    return _model(a, sizes(a), attention=AttentionDesign(window=None if size is None else Window(size)))


def _qwen_window(a: Attributes, num_layers: int) -> Window | None:
    used, size = a.take("use_sliding_window", False), a.take("sliding_window", 4096)
    first = a.take("max_window_layers", 28)
    return window(a, size if used else None, num_layers, lambda n: bool(used) and n >= first)


def _read_qwen2(a: Attributes) -> Variant:
    known = sizes(a)
    return _model(a, known, attention=AttentionDesign(qkv_bias=True, window=_qwen_window(a, known["num_layers"])))


def _read_qwen3(a: Attributes) -> Variant:
    known, bias = sizes(a, head_size=128), a.take("attention_bias", False)
    attention = AttentionDesign(qkv_bias=bias, output_bias=bias, window=_qwen_window(a, known["num_layers"]))
    return _model(a, known, attention=attention, qk_norm=True)


def _read_mixtral(a: Attributes) -> Variant:
    size = a.number("sliding_window", None)
    attention = AttentionDesign(window=None if size is None else Window(size))
    mlp = Experts(_num_experts(a, 8), a.number("num_experts_per_tok", 2), True, activation(a, "hidden_act", "silu"))
    return _model(a, sizes(a, eps=1e-5), theta=1e6, attention=attention, mlp=mlp)


def _read_qwen3_moe(a: Attributes) -> Variant:
    a.require("decoder_sparse_step", 1)
    a.require("mlp_only_layers", [], None)
    a.require("use_sliding_window", False)
    for unused in ("sliding_window", "max_window_layers", "intermediate_size"):  # no window, no layer without experts
        a.take(unused, None)
    bias = a.take("attention_bias", False)
    mlp = Experts(
        _num_experts(a, 128), a.number("num_experts_per_tok", 8), a.take("norm_topk_prob", False),
        activation(a, "hidden_act", "silu"),
    )  # fmt: skip
    attention = AttentionDesign(qkv_bias=bias, output_bias=bias)
    width = a.number("moe_intermediate_size")
    return _model(a, sizes(a), attention=attention, mlp=mlp, mlp_width=width, qk_norm=True)


def _num_experts(a: Attributes, default: int) -> int:
    """Both names are in use."""
    older = a.number("num_experts", default)
    return a.number("num_local_experts", older)


def _written(config: Variant) -> dict[str, Any]:
    act = activation_name(config.design.mlp.activation)
    return (
        size_attributes(config) | rope_attributes(config) | {"intermediate_size": config.mlp_width, "hidden_act": act}
    )


def _write_llama(config: Variant) -> dict[str, Any]:
    mlp_bias = isinstance(config.design.mlp, GatedMLP) and config.design.mlp.bias
    return _written(config) | {"attention_bias": config.design.attention.output_bias, "mlp_bias": mlp_bias}


def _write_mistral(config: Variant) -> dict[str, Any]:
    found = config.design.attention.window
    return _written(config) | {"sliding_window": None if found is None else found.size}


def _write_qwen2(config: Variant) -> dict[str, Any]:
    found = config.design.attention.window
    return _written(config) | {
        "use_sliding_window": found is not None,
        "sliding_window": None if found is None else found.size,
        "max_window_layers": config.num_layers,
        "layer_types": layer_types(config),
    }


def _write_qwen3(config: Variant) -> dict[str, Any]:
    return _write_qwen2(config) | {"attention_bias": config.design.attention.output_bias}


def _experts_written(config: Variant) -> dict[str, Any]:
    mlp = config.design.mlp
    return {"num_experts_per_tok": mlp.active, "num_local_experts": mlp.num} if isinstance(mlp, Experts) else {}


def _write_mixtral(config: Variant) -> dict[str, Any]:
    return _write_mistral(config) | _experts_written(config)


def _write_qwen3_moe(config: Variant) -> dict[str, Any]:
    mlp, experts = config.design.mlp, _experts_written(config)
    return _written(config) | {
        "attention_bias": config.design.attention.output_bias,
        "num_experts": experts.get("num_local_experts", 0),  # the name that versions before 5 know
        "num_experts_per_tok": experts.get("num_experts_per_tok", 0),
        "norm_topk_prob": isinstance(mlp, Experts) and mlp.normalise,
        "moe_intermediate_size": config.mlp_width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


LAYER = "model.layers.{n}."


def attention_rows(config: Variant) -> list[Row]:
    """Embeddings, attention and the last norm, as Llama names them."""
    attention = config.design.attention
    ours, theirs = "layers/attention/", LAYER + "self_attn."
    rows = [Row("embed_VD", "model.embed_tokens.weight", "V D"), *norm_rows("norm", "model.norm")]
    rows += norm_rows("layers/attention_norm", LAYER + "input_layernorm")
    rows += biased(ours + "q_DHK", theirs + "q_proj", "HK D", "HK", attention.qkv_bias)
    rows += biased(ours + "k_DJK", theirs + "k_proj", "JK D", "JK", attention.qkv_bias)
    rows += biased(ours + "v_DJK", theirs + "v_proj", "JK D", "JK", attention.qkv_bias)
    rows += biased(ours + "o_HKD", theirs + "o_proj", "D HK", "D", attention.output_bias)
    if config.qk_norm:
        rows += norm_rows(ours + "q_norm", theirs + "q_norm", "K") + norm_rows(ours + "k_norm", theirs + "k_norm", "K")
    return rows if config.tied else [*rows, Row("head_VD", "lm_head.weight", "V D")]


def gated_rows(config: Variant) -> list[Row]:
    """A gated MLP, as Llama names it."""
    mlp, theirs = config.design.mlp, LAYER + "mlp."
    bias = isinstance(mlp, GatedMLP) and mlp.bias
    rows = biased("layers/mlp/gate_DF", theirs + "gate_proj", "F D", "F", bias)
    rows += biased("layers/mlp/up_DF", theirs + "up_proj", "F D", "F", bias)
    return rows + biased("layers/mlp/down_FD", theirs + "down_proj", "D F", "D", bias)


def _expert_rows(theirs: str, gate: str, up: str, down: str) -> list[Row]:
    expert = theirs + "experts.{e}."
    return [
        Row("layers/mlp/router_DE", theirs + "gate.weight", "E D"),
        Row("layers/mlp/gate_EDF", f"{expert}{gate}.weight", "F D"),
        Row("layers/mlp/up_EDF", f"{expert}{up}.weight", "F D"),
        Row("layers/mlp/down_EFD", f"{expert}{down}.weight", "D F"),
    ]


def _pre_norm(config: Variant) -> list[Row]:
    return attention_rows(config) + norm_rows("layers/mlp_norm", LAYER + "post_attention_layernorm")


def _dense_rows(config: Variant) -> list[Row]:
    return _pre_norm(config) + gated_rows(config)


def _mixtral_rows(config: Variant) -> list[Row]:
    return _pre_norm(config) + _expert_rows(LAYER + "block_sparse_moe.", "w1", "w3", "w2")


def _qwen3_moe_rows(config: Variant) -> list[Row]:
    return _pre_norm(config) + _expert_rows(LAYER + "mlp.", "gate_proj", "up_proj", "down_proj")


LLAMA = Family("llama", "LlamaForCausalLM", _read_llama, _write_llama, _dense_rows)
MISTRAL = Family("mistral", "MistralForCausalLM", _read_mistral, _write_mistral, _dense_rows)
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _read_qwen2, _write_qwen2, _dense_rows)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", _read_qwen3, _write_qwen3, _dense_rows)
MIXTRAL = Family("mixtral", "MixtralForCausalLM", _read_mixtral, _write_mixtral, _mixtral_rows)
QWEN3_MOE = Family("qwen3_moe", "Qwen3MoeForCausalLM", _read_qwen3_moe, _write_qwen3_moe, _qwen3_moe_rows)
