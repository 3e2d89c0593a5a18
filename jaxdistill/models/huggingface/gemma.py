"""Gemma 2, and the text models of Gemma 3."""

import math
from typing import Any

from jaxdistill.models.design import AttentionDesign, Design, GatedMLP, RMSNorm, Rotary
from jaxdistill.models.huggingface.attributes import Attributes
from jaxdistill.models.huggingface.family import (
    GLOBAL,
    LOCAL,
    Family,
    activation,
    activation_name,
    layer_types,
    norm_rows,
    rope,
    rope_attributes,
    size_attributes,
    sizes,
    two_ropes,
    window,
)
from jaxdistill.models.huggingface.llama import LAYER, attention_rows, gated_rows
from jaxdistill.models.huggingface.tables import Row
from jaxdistill.models.variant import Variant


def _model(
    a: Attributes, *, pattern: int, local_theta: float | None, caps: tuple[float | None, float | None]
) -> Variant:
    """A Gemma in which every `pattern`-th layer sees everything, with the defaults of the caps on scores and logits."""
    known = sizes(a, head_size=256, tied=True)
    a.require("use_bidirectional_attention", False, None)
    bias = a.take("attention_bias", False)
    attention = AttentionDesign(
        qkv_bias=bias,
        output_bias=bias,
        scale=a.number("query_pre_attn_scalar", 256) ** -0.5,
        softcap=a.take("attn_logit_softcapping", caps[0]),
        window=window(
            a, a.number("sliding_window", 4096, or_none=True), known["num_layers"], lambda n: bool((n + 1) % pattern)
        ),
    )
    base, position = rope(a, 1e4) if local_theta is None else two_ropes(a, 1e6, local_theta)
    if attention.window is None:
        position = Rotary(position.fraction, position.scaling)
    design = Design(
        norm=RMSNorm(unit_offset=True),
        position=position,
        attention=attention,
        mlp=GatedMLP(activation(a, "hidden_activation", "gelu_pytorch_tanh")),
        residual="sandwich",
        embed_scale=math.sqrt(known["width"]),
        logit_scale=1.0,
    )
    return Variant(
        **known,
        mlp_width=a.number("intermediate_size"),
        qk_norm=local_theta is not None,
        rope_base=base,
        softcap=a.take("final_logit_softcapping", caps[1]),
        design=design,
    )


def _read_gemma2(a: Attributes) -> Variant:
    for unused in ("hidden_act", "sliding_window_size"):  # which transformers does not read either
        a.take(unused, None)
    return _model(a, pattern=2, local_theta=None, caps=(50.0, 30.0))


def _read_gemma3(a: Attributes) -> Variant:
    a.take("hidden_act", None)
    pattern = a.number("sliding_window_pattern", None) or a.number("_sliding_window_pattern", 6)
    return _model(a, pattern=pattern, local_theta=1e4, caps=(None, None))


def _written(config: Variant) -> dict[str, Any]:
    attention = config.design.attention
    return size_attributes(config) | {
        "intermediate_size": config.mlp_width,
        "hidden_activation": activation_name(config.design.mlp.activation),
        "attention_bias": attention.output_bias,
        "query_pre_attn_scalar": _whole((attention.scale or config.head_size**-0.5) ** -2),
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": config.softcap,
        "sliding_window": 4096 if attention.window is None else attention.window.size,
        "layer_types": layer_types(config),
    }


def _whole(number: float) -> float | int:
    """A number that was whole before its root was taken."""
    return round(number) if math.isclose(number, round(number), rel_tol=1e-9) else number


def _write_gemma2(config: Variant) -> dict[str, Any]:
    return _written(config) | rope_attributes(config)


def _write_gemma3(config: Variant) -> dict[str, Any]:
    position, rope = config.design.position, rope_attributes(config)
    local = position.local_base if isinstance(position, Rotary) else None
    everywhere = {"rope_type": "default", "rope_theta": rope["rope_theta"], **rope.get("rope_scaling", {})}
    beside = {"rope_type": "default", "rope_theta": 1e4 if local is None else local}
    return _written(config) | {"rope_parameters": {GLOBAL: everywhere, LOCAL: beside}}


def _rows(config: Variant) -> list[Row]:
    rows = attention_rows(config) + gated_rows(config)
    for ours, theirs in (
        ("attention_post_norm", "post_attention_layernorm"),
        ("mlp_norm", "pre_feedforward_layernorm"),
        ("mlp_post_norm", "post_feedforward_layernorm"),
    ):
        rows += norm_rows(f"layers/{ours}", LAYER + theirs)
    return rows


GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", _read_gemma2, _write_gemma2, _rows)
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", _read_gemma3, _write_gemma3, _rows)
