"""What a family of checkpoints is, and what several families say in the same words."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxdistill.errors import InputError
from jaxdistill.models.design import Activation, LinearScaling, Llama3Scaling, Rotary, Window
from jaxdistill.models.huggingface.attributes import Attributes
from jaxdistill.models.huggingface.tables import Row
from jaxdistill.models.variant import Variant

LOCAL, GLOBAL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    Attributes:
      model_type, architecture: as config.json names it, and the class of `transformers`.
      read: the configuration from the attributes; InputError for what our Transformer does not compute.
      write: the attributes of a configuration. What the family has no attribute for is left out, so what was written
        is read again and compared (see `writing`).
      rows: the table of tensors.
      prefix: in front of all names but the output layer's; some checkpoints go without.
      buffers: endings of tensors that hold no parameters.
    """

    model_type: str
    architecture: str
    read: Callable[[Attributes], Variant]
    write: Callable[[Variant], dict[str, Any]]
    rows: Callable[[Variant], Sequence[Row]]
    prefix: str = "model."
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)


ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip


def activation(a: Attributes, name: str, default: str) -> Activation:
    """The activation that an attribute names."""
    if (value := a.take(name, default)) not in ACTIVATIONS:
        raise InputError(f"{a.where}: {name} is {value!r}, and only {', '.join(ACTIVATIONS)} are understood")
    return ACTIVATIONS[value]


def activation_name(activation: Activation) -> str:
    """Their name of an activation."""
    return "gelu_pytorch_tanh" if activation == "gelu_tanh" else activation


def rope(a: Attributes, theta: float, fraction: float | None = None) -> tuple[float, Rotary]:
    """Base and design of rotary positions, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    `theta` is the base where none is named, and `fraction` so for the part of a head that turns, in a family that has
    such a part.
    """
    group = a.nested("rope_parameters")
    base = a.number("rope_theta", theta)
    base = group.number("rope_theta", base)
    if fraction is not None:
        fraction = group.number("partial_rotary_factor", fraction)
    scaling = _scaling(group if "rope_type" in group else a.nested("rope_scaling"))
    group.finish()
    return float(base), Rotary(1.0 if fraction is None else float(fraction), scaling)


def two_ropes(a: Attributes, theta: float, local_theta: float) -> tuple[float, Rotary]:
    """As `rope`, where layers with a window have a base of their own, and no scaling."""
    group = a.nested("rope_parameters")
    everywhere, local = group.nested(GLOBAL), group.nested(LOCAL)
    base, local_base = a.number("rope_theta", theta), a.number("rope_local_base_freq", local_theta)
    base, local_base = everywhere.number("rope_theta", base), local.number("rope_theta", local_base)
    local.require("rope_type", "default")
    scaling = _scaling(everywhere if "rope_type" in everywhere else a.nested("rope_scaling"))
    for left in (group, everywhere, local):
        left.finish()
    return float(base), Rotary(scaling=scaling, local_base=float(local_base))


def _scaling(group: Attributes) -> LinearScaling | Llama3Scaling | None:
    kind = group.take("rope_type", None) or group.take("type", "default")
    group.take("type", None)  # older files say it twice
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = LinearScaling(float(group.number("factor")))
        case "llama3":
            names = "factor", "low_freq_factor", "high_freq_factor"
            context = int(group.number("original_max_position_embeddings"))
            scaling = Llama3Scaling(*(float(group.number(name)) for name in names), context)
        case _:
            raise InputError(f"{group.where}: positions are scaled by {kind!r}; only linear and llama3 are understood")
    group.finish(["original_max_position_embeddings"])
    return scaling


def rope_attributes(config: Variant) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, which all versions of `transformers` read."""
    position = config.design.position
    scaling = position.scaling if isinstance(position, Rotary) else None
    written: dict[str, Any] = {"rope_theta": config.rope_base}
    if isinstance(scaling, LinearScaling):
        written["rope_scaling"] = {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3Scaling):
        written["rope_scaling"] = {
            "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high, "original_max_position_embeddings": scaling.context,
        }  # fmt: skip
    return written


def window(a: Attributes, size: int | None, num_layers: int, is_local: Callable[[int], bool]) -> Window | None:
    """The layers with a window: those that `layer_types` lists, or `is_local` where there is no such list."""
    default = [LOCAL if is_local(n) else GLOBAL for n in range(num_layers)]
    types = a.take("layer_types", None) or default
    if len(types) != num_layers or set(types) - {LOCAL, GLOBAL}:
        raise InputError(f"{a.where}: layer_types must be {num_layers} times {LOCAL!r} or {GLOBAL!r}")
    layers = tuple(n for n, kind in enumerate(types) if kind == LOCAL)
    if not layers:
        return None
    if size is None:
        raise InputError(f"{a.where}: layer_types has layers with a window, and there is no sliding_window")
    return Window(int(size), None if len(layers) == num_layers else layers)


def layer_types(config: Variant) -> list[str]:
    """`layer_types` of a configuration."""
    found = config.design.attention.window
    layers = () if found is None else range(config.num_layers) if found.layers is None else found.layers
    return [LOCAL if n in layers else GLOBAL for n in range(config.num_layers)]


def sizes(a: Attributes, head_size: int | None = None, eps: float = 1e-6, tied: bool = False) -> dict[str, Any]:
    """The sizes as the Llama family names them, with the family's defaults."""
    width, num_heads = a.number("hidden_size"), a.number("num_attention_heads")
    return {
        "vocab_size": a.number("vocab_size"),
        "num_layers": a.number("num_hidden_layers"),
        "width": width,
        "num_heads": num_heads,
        "head_size": a.number("head_dim", head_size) or head_size or width // num_heads,
        "num_kv_heads": a.number("num_key_value_heads", None) or num_heads,
        "norm_eps": a.number("rms_norm_eps", eps),
        "tied": a.take("tie_word_embeddings", tied),
        "base_width": width,
    }


def size_attributes(config: Variant) -> dict[str, Any]:
    """What `sizes` reads."""
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "head_dim": config.head_size,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }


def biased(ours: str, theirs: str, axes: str, letters: str, present: bool) -> list[Row]:
    """The rows of a linear layer: its matrix, and its bias where it is `present`.

    `ours` is the path of the matrix; the bias is called after it with its own `letters`.
    """
    stem = ours.rpartition("_")[0]
    rows = [Row(ours, f"{theirs}.weight", axes)]
    return [*rows, Row(f"{stem}_bias_{letters}", f"{theirs}.bias", letters)] if present else rows


def norm_rows(ours: str, theirs: str, letter: str = "D", bias: bool = False) -> list[Row]:
    """The rows of a norm."""
    return biased(f"{ours}_{letter}", theirs, letter, letter, bias)
