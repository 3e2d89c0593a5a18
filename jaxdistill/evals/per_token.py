"""What every token tells of a model, and of a student beside its teacher, found while its logits exist.

The vocabulary is met through `losses.vocabulary.Vocabulary` alone, so all of it streams over chunks of positions and
shards as the losses do; nobody holds the logits of a batch.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill.ensemble import Heads, mean_logits
from jaxdistill.head import Head
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.losses.linear_heads.divergence.api import alike
from jaxdistill.losses.linear_heads.stream import streamed_sum
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.targets import NO_ID, Dense, Labels
from jaxdistill.losses.transforms import Average
from jaxdistill.losses.vocabulary import Vocabulary


def per_token(
    head: Head | Heads,
    label_BL: Array,
    teacher: Head | None = None,
    *,
    positions: int | None = None,
    sharding: Sharding = Sharding(),
) -> dict[str, Array]:
    """{name: fp32 [B, L]} of a model, and with a teacher those of `between` and, as "teacher_...", the teacher's own.

    Args:
      head: of the model, or the heads of an ensemble.
      label_BL: int32, the token of the data.
      teacher: a head of the same vocabulary; it may differ in width and in padding.
      positions: positions of each sequence whose logits are held at a time; None takes the default of the platform.
      sharding: how tokens and vocabulary lie on the devices.

    Raises InputError where the vocabularies differ.
    """
    target: Labels | Dense = Labels(label_BL)
    if teacher is not None:
        own = head.first if isinstance(head, Heads) else head
        target = Dense(label_BL, alike(own, teacher, pad=sharding.splits_vocabulary))
    inputs: dict[str, Any] = {"target": target}
    average = None
    if isinstance(head, Heads):
        average, others, head = head.average, head.others, head.first
        inputs["others"] = {name: alike(head, own, pad=sharding.splits_vocabulary) for name, own in others.items()}
    return streamed_sum(_OnChunk(average), head, inputs, positions=positions, sharding=sharding)[1]


@dataclasses.dataclass(frozen=True)
class _OnChunk:
    """All numbers of a chunk, in the form that `streamed_sum` calls; there is no gradient to give.

    `average` is of an ensemble, whose first member's logits these are.
    """

    average: Average | None = None

    def __call__(self, z_BLV: Array, inputs: Any, vocabulary: Vocabulary, with_gradient: bool):
        target = inputs["target"]
        if self.average is not None:
            z_BLV = mean_logits(self.average, z_BLV, inputs["others"], vocabulary)
        log_q_BLV = vocabulary.log_softmax(z_BLV)
        values = of_model(log_q_BLV, target.label_BL, vocabulary)
        if isinstance(target, Dense):
            log_p_BLV = vocabulary.log_softmax(target.logits(z_BLV, vocabulary))
            teacher = of_model(log_p_BLV, target.label_BL, vocabulary)
            values |= {f"teacher_{name}": value_BL for name, value_BL in teacher.items()}
            values |= between(log_p_BLV, log_q_BLV, vocabulary)
        return values["loss"], values, None


def of_model(log_q_BLV: Array, label_BL: Array, vocabulary: Vocabulary) -> dict[str, Array]:
    """Of one distribution q a token, from its log-probabilities.

    loss        -log q(label), nats
    entropy     -sum_v q_v log q_v, nats
    confidence  max_v q_v
    correct     1 where the most probable token is the label, else 0
    """
    at_label_BLV = vocabulary.at(label_BL, log_q_BLV.shape[-1])
    return {
        "loss": -vocabulary.sum(jnp.where(at_label_BLV, log_q_BLV, 0)),
        "entropy": -vocabulary.sum(jnp.exp(log_q_BLV) * log_q_BLV),
        "confidence": jnp.exp(vocabulary.max(log_q_BLV)),
        "correct": (most_probable(log_q_BLV, vocabulary) == label_BL).astype(jnp.float32),
    }


def between(log_p_BLV: Array, log_q_BLV: Array, vocabulary: Vocabulary) -> dict[str, Array]:
    """Of a teacher p and a student q, from their log-probabilities.

    forward_kl  KL(p || q), nats
    reverse_kl  KL(q || p), nats
    agreement   1 where both have the same most probable token, else 0
    acceptance  sum_v min(p_v, q_v): how probable it is that speculative decoding keeps a token that the student
                drafts (Leviathan et al. 2023, arXiv 2211.17192, theorem 3.5)
    """
    nowhere_BLV = jnp.zeros(log_q_BLV.shape, bool)  # neither divergence looks at the label
    return {
        "forward_kl": vocabulary.sum(*ForwardKL().points(log_p_BLV, log_q_BLV, nowhere_BLV)),
        "reverse_kl": vocabulary.sum(*ReverseKL().points(log_p_BLV, log_q_BLV, nowhere_BLV)),
        "agreement": (most_probable(log_p_BLV, vocabulary) == most_probable(log_q_BLV, vocabulary)).astype(jnp.float32),
        "acceptance": vocabulary.sum(jnp.exp(jnp.minimum(log_p_BLV, log_q_BLV))),
    }


def most_probable(log_q_BLV: Array, vocabulary: Vocabulary) -> Array:
    """The id of the largest entry over the whole vocabulary, int32 [B, L]; of equal ones the lowest, as argmax."""
    id_V = vocabulary.first + jnp.arange(log_q_BLV.shape[-1], dtype=jnp.int32)
    is_top_BLV = log_q_BLV == vocabulary.max(log_q_BLV)[..., None]
    return -vocabulary.max(jnp.where(is_top_BLV, -id_V, -NO_ID))
