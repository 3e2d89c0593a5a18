"""Several models of one tokenizer as one: at every token the mean of what they give each next one.

Models of other tokenizers are first moved to one (`start.Transplanted`, and ALM). Then an ensemble is a model among
others: it has `hidden` and `head` for whole texts, `cache` and `extend` for token by token, and its parameters are a
tuple of theirs. As a teacher, the same is `Online(run, references=...)` with the target `Average`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.lazy import Lazy
from jaxdistill.losses.transforms import Average
from jaxdistill.losses.vocabulary import WHOLE, Vocabulary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of all members on the same tokens, and how they are averaged.

    Attributes:
      first, others: of the members, by number; one vocabulary, which each may pad in its own way.
      average: as a target of the first and its references takes it.
    """

    first: Head
    others: Mapping[str, Head]
    average: Average = dataclasses.field(metadata={"static": True})

    def logits(self) -> Array:
        """The mean, whole: fp32 [B, L, V], where V is that of the first member."""
        return mean_logits(self.average, self.first.logits(), self.others)


def mean_logits(average: Average, z_BLV: Array, others: Mapping[str, Head], vocabulary: Vocabulary = WHOLE) -> Array:
    """Logits of the mean of a member, whose own are `z_BLV`, and of others; of probabilities, their logarithm."""
    none: Any = None  # no label: an average looks at none
    return average(Lazy(none, lambda z_BLV, _: z_BLV, others), {}).logits(z_BLV, vocabulary)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Models whose ids mean the same.

    Attributes:
      members: with `hidden`, `head`, `cache` and `extend` each, as `models.transformer.Transformer` has them.
      of: what is averaged, as `losses.transforms.Average` says: "probability" or "logit".
    """

    members: tuple[Any, ...]
    of: Any = "probability"

    def hidden(self, params: Any, *inputs: Any) -> tuple[tuple[Array, ...], dict]:
        """The last hidden states of every member; none of their layers."""
        return tuple(model.hidden(own, *inputs)[0] for model, own in zip(self.members, params, strict=True)), {}

    def head(self, params: Any, states: tuple[Array, ...]) -> Heads:
        """What stands for the logits of all."""
        first, *others = (model.head(*own) for model, *own in zip(self.members, params, states, strict=True))
        named = {str(number): head for number, head in enumerate(others, 1)}
        return Heads(first, named, Average(tuple(named), self.of))

    def cache(self, batch: int, length: int) -> tuple[Any, ...]:
        """Room for the past of every member."""
        return tuple(model.cache(batch, length) for model in self.members)

    def extend(self, params: Any, tokens_BL: Array, start_B: Array, cache: Any) -> tuple[tuple[Array, ...], Any]:
        """As `Transformer.extend`, of every member."""
        each = zip(self.members, params, cache, strict=True)
        extended = [model.extend(own, tokens_BL, start_B, past) for model, own, past in each]
        states, caches = zip(*extended, strict=True)
        return states, caches
