"""A decoder of another design than ours: the families of public models, or one's own."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.design import Design, Experts, LearnedPositions, Rotary
from jaxdistill.models.transformer import Config, Transformer


@dataclasses.dataclass(frozen=True)
class Variant(Config):
    """A Config whose design is a field.

    Attributes:
      design: the parts.
    """

    design: Design = Design()

    def __post_init__(self):
        super().__post_init__()
        window, position = self.design.attention.window, self.design.position
        local = () if window is None or window.layers is None else window.layers
        if wrong := [n for n in local if not 0 <= n < self.num_layers]:
            raise InputError(f"a window on layer {wrong[0]} of a model with {self.num_layers} layers: take it away")
        if isinstance(position, Rotary) and position.local_base is not None and window is None:
            raise InputError("design.position.local_base is for layers with a window: give design.attention.window")

    @property
    def dims(self) -> dict[str, int]:
        """The size of every letter that a parameter of this model may carry."""
        more = {}
        if isinstance(self.design.mlp, Experts):
            more["E"] = self.design.mlp.num
        if isinstance(self.design.position, LearnedPositions):
            more["P"] = self.design.position.rows
        if self.design.subwords is not None:
            more |= {"G": self.design.subwords.num, "Y": self.design.subwords.longest}
        return super().dims | more

    @property
    def num_params(self) -> int:
        """Parameters without embeddings of tokens, subwords and positions; all experts count."""
        return _count(self, without="VPG")

    @property
    def num_params_total(self) -> int:
        """Parameters with the embeddings, counted at the tokenizer's size."""
        padding = (self.padded_vocab_size - self.vocab_size) * self.width * (1 if self.tied else 2)
        return _count(self, without="") - padding


@functools.lru_cache
def _count(config: Config, without: str) -> int:
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    counted = (x for _, own, x in dims.leaves(shapes) if not set(own) & set(without))
    return sum(math.prod(x.shape) for x in counted if jnp.issubdtype(x.dtype, jnp.floating))
