"""What families of decoders differ in beyond numbers: the parts that a `Design` chooses, each a small frozen class.

The defaults are our own model: RMS norms before each part, rotary positions, a gated MLP, no biases. `families` has the
public ones.
"""

import dataclasses
from typing import Literal

from jaxdistill.errors import InputError

Activation = Literal["silu", "relu", "gelu", "gelu_tanh"]


@dataclasses.dataclass(frozen=True)
class RMSNorm:
    """x / rms(x) * gain (Zhang & Sennrich 2019). With `unit_offset` the parameter is gain - 1, as in Gemma."""

    unit_offset: bool = False


@dataclasses.dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / std * gain + bias (Ba et al. 2016)."""


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Every rotary frequency divided by `factor` (position interpolation, arXiv 2306.15595)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Low rotary frequencies divided by `factor`, high ones kept, and a ramp between (Llama 3.1's reference code).

    Attributes:
      factor: of frequencies that turn less than `low` times within `context`.
      low, high: turns within `context` between which the ramp lies.
      context: positions of the training before it was extended.
    """

    factor: float
    low: float
    high: float
    context: int

    def __post_init__(self):
        if not self.low < self.high:
            raise InputError(f"Llama3Scaling: low ({self.low}) must be below high ({self.high})")


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions with the model's `rope_base`.

    Attributes:
      fraction: of each head that turns; the rest passes (GPT-NeoX).
      scaling: of the frequencies, for contexts longer than the training's.
      local_base: base in the layers that have a window, where `scaling` does not apply (Gemma 3); None: as elsewhere.
    """

    fraction: float = 1.0
    scaling: LinearScaling | Llama3Scaling | None = None
    local_base: float | None = None


@dataclasses.dataclass(frozen=True)
class LearnedPositions:
    """A table of `rows` vectors added to the embedding; position p reads row p + `offset` (OPT keeps two in front)."""

    rows: int
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class Window:
    """Sliding-window attention: a query sees itself and `size` - 1 positions before it.

    Attributes:
      size: in positions.
      layers: those that have the window; None for all.
    """

    size: int
    layers: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"an attention window of {self.size} sees nothing; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class AttentionDesign:
    """Attention beyond its sizes.

    Attributes:
      qkv_bias, output_bias: biases of the projections.
      scale: factor on q . k; None for 1 / sqrt(head size).
      softcap: cap * tanh(score / cap) where given (Gemma 2).
      window: None where every query sees all that is before it.
    """

    qkv_bias: bool = False
    output_bias: bool = False
    scale: float | None = None
    softcap: float | None = None
    window: Window | None = None


@dataclasses.dataclass(frozen=True)
class GatedMLP:
    """down(activation(gate x) * up x) (Shazeer 2020, arXiv 2002.05202)."""

    activation: Activation = "silu"
    bias: bool = False


@dataclasses.dataclass(frozen=True)
class PlainMLP:
    """down(activation(up x))."""

    activation: Activation
    bias: bool = False


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of gated MLPs; every token goes to its `active` most probable ones, and none is dropped.

    Attributes:
      num: experts a layer.
      active: experts a token.
      normalise: weights of the chosen experts add up to one; else they are their probabilities among all.
      activation: inside each.
    """

    num: int
    active: int
    normalise: bool = True
    activation: Activation = "silu"

    def __post_init__(self):
        if not 1 <= self.active <= self.num:
            raise InputError(f"{self.active} active experts of {self.num}: choose at least 1 and at most all")


@dataclasses.dataclass(frozen=True)
class Subwords:
    """A second input of a model of bytes, which nothing trains: the longest old token that ends at each (`subwords`).

    Attributes:
      num: rows of the table, those of the old vocabulary.
      longest: bytes of one, at most.
    """

    num: int
    longest: int


@dataclasses.dataclass(frozen=True)
class Design:
    """The parts of a decoder.

    Attributes:
      norm, position, attention, mlp: see their classes.
      residual: "sequential", each part adds to the stream it reads; "sandwich", a second norm on what is added (Gemma);
        "parallel", attention and MLP read the same stream (GPT-NeoX).
      embed_scale: factor on the input embedding.
      logit_scale: factor on the logits; None for sqrt(base_width) / width, ours (see `Transformer.head`).
      subwords: None where a token's embedding is all that enters.
    """

    norm: RMSNorm | LayerNorm = RMSNorm()
    position: Rotary | LearnedPositions = Rotary()
    attention: AttentionDesign = AttentionDesign()
    mlp: GatedMLP | PlainMLP | Experts = GatedMLP()
    residual: Literal["sequential", "sandwich", "parallel"] = "sequential"
    embed_scale: float = 1.0
    logit_scale: float | None = None
    subwords: Subwords | None = dataclasses.field(default=None, metadata={"later": True})

    @property
    def has_local_layers(self) -> bool:
        """Whether layers differ in what they see, so that the scan over them must know which is which."""
        return self.attention.window is not None
