"""Targets: what is known about the next token. The type says how much, and every one of them carries the data's token.

A target is made before the gradient is taken, by the data, a teacher or a cache; a loss cannot tell which.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.head import MASKED, Head
from jaxdistill.losses.vocabulary import WHOLE, Vocabulary

Numbers = Array | np.ndarray
NO_ID = int(jnp.iinfo(jnp.int32).max)  # an entry that holds nothing: it sorts last, and no vocabulary has it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
    """The token of the data and nothing else: `label_BL`, int32."""

    label_BL: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK:
    """A teacher's most probable tokens, at temperature 1.

    Attributes:
      label_BL: the token of the data.
      id_BLS: int32, without duplicates; NO_ID in entries that hold nothing.
      logp_BLS: their log-probabilities, fp32, normalised over the whole vocabulary; MASKED where nothing is held.
      logtail_BL: log of the mass that the others share; MASKED where they have none.
    """

    label_BL: Array
    id_BLS: Array
    logp_BLS: Array
    logtail_BL: Array

    @classmethod
    def of(cls, label_BL: Array, id_BLS: Array, logp_BLS: Array) -> "TopK":
        """With the tail that the entries leave."""
        mass_BL = jnp.sum(jnp.exp(logp_BLS), axis=-1)
        logtail_BL = jnp.where(mass_BL < 1, jnp.log1p(-jnp.minimum(mass_BL, 1)), MASKED)
        return cls(label_BL, id_BLS, logp_BLS, jnp.maximum(logtail_BL, MASKED))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
    """Tokens drawn from a teacher, with weights whose expectation is its distribution (RS-KD, arXiv 2503.16870).

    Attributes:
      label_BL: the token of the data.
      id_BLS: int32, without duplicates; NO_ID in entries that hold nothing.
      weight_BLS: fp32; (count / rounds) p / q for draws from q, so that E[weight] = p; 0 where nothing is held.
    """

    label_BL: Array
    id_BLS: Array
    weight_BLS: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """A teacher's whole distribution, as the Head that makes it; logits exist only for the chunk a loss looks at.

    Attributes:
      label_BL: the token of the data.
      head: the teacher's.
      references: heads of further frozen models by name, for targets and weights that compare several.
    """

    label_BL: Array
    head: Head
    references: Mapping[str, Head] = dataclasses.field(default_factory=dict)

    def logits(self, z_BLV: Array, vocabulary: Vocabulary = WHOLE) -> Array:
        """The teacher's logits on the columns of the student's logits `z_BLV`."""
        return logits_like(self.head, z_BLV, vocabulary)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunked:
    """What a teacher of another tokenizer says of the chunks of a text (`align`).

    Attributes:
      logp_BC: log-probability of each chunk, fp32, corrected as `debias` says.
      is_real_BC: bool, the chunks that count.
      chunk_BL: int32, the chunk of each of the student's labels; negative where there is none.
      debias: the correction, as `align.chunk_logp` takes it.
    """

    logp_BC: Numbers
    is_real_BC: Numbers
    chunk_BL: Numbers
    debias: Literal["none", "outcome", "both"] = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beside:
    """A teacher of another tokenizer on its own tokens, [B, L] of its own length.

    Attributes:
      head: its head.
      index_BLAD: embeddings of its inputs and of its labels.
      label_BL: int32, the tokens that follow its inputs.
      weight_BL: fp32, what they count for.
      rest_BL: fp32, the log-probability of the other tokens of each one's chunk.
      chunks: an `align.Chunks`, of which those count that have a log-probability on both sides.
    """

    head: Head
    index_BLAD: Array
    label_BL: Numbers
    weight_BL: Numbers
    rest_BL: Array
    chunks: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Further:
    """What is known of a step's text beside the target.

    Attributes:
      states: a teacher's hidden states by layer, [B, L, D] each; empty where no term looks at them.
      is_state_BL: bool, the tokens that have one; None for all, as with a teacher of the same tokenizer.
      chunks: what a teacher of another tokenizer says, where there is one.
      beside: that teacher itself, where there is one.
      signals: numbers of the tokens by name, [B, L] each, that token weights may read beside those of the batch.
    """

    states: Mapping[int, Array] = dataclasses.field(default_factory=dict)
    is_state_BL: Array | None = None
    chunks: Chunked | None = None
    beside: "Beside | None" = None
    signals: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    def weight(self, weight_BL: Array) -> Array:
        """The weights, 0 where there is no state to compare with."""
        return weight_BL if self.is_state_BL is None else jnp.where(self.is_state_BL, weight_BL, 0)


def logits_like(head: Head, z_BLV: Array, vocabulary: Vocabulary) -> Array:
    """A head's logits on the columns of z_BLV: two models of one tokenizer may pad their vocabularies differently."""
    own_BLV = head.logits(vocabulary.first)
    extra = z_BLV.shape[-1] - own_BLV.shape[-1]
    if extra <= 0:
        return own_BLV[..., : z_BLV.shape[-1]]
    return jnp.pad(own_BLV, ((0, 0), (0, 0), (0, extra)), constant_values=MASKED)


Target = Labels | TopK | Sampled | Dense
