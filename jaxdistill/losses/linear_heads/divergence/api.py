"""`linear_divergence`: two whole distributions compared, student and teacher, fused with both heads."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.divergence import chunked, reference, tiled
from jaxdistill.losses.linear_heads.sharding import LOCAL, Sharding
from jaxdistill.losses.linear_heads.sparse.api import Mode, check_weights, known
from jaxdistill.losses.linear_heads.stream import streamed_sum
from jaxdistill.losses.loss import Divergence
from jaxdistill.losses.targets import Dense
from jaxdistill.losses.vocabulary import Vocabulary


def linear_divergence(
    divergence: Divergence,
    head: Head,
    teacher: Head,
    weight_BL: Array,
    *,
    label_BL: Array | None = None,
    mode: Mode = "forward",
    implementation: str | None = None,
    positions: int | None = None,
    sharding: Sharding = LOCAL,
) -> tuple[Array, Array]:
    """sum_t weight_t divergence(teacher_t, student_t), never holding all logits of either.

    Args:
      divergence: such as ForwardKL(), or Jensen–Shannon with its weight.
      head, teacher: what makes the logits of student and teacher, which may differ in width and in padding.
      weight_BL: fp32.
      label_BL: the token of the data, for divergences that single it out.
      mode: "forward" forms the gradient with the value, a chunk of tokens at a time; "recompute" walks over tiles of
        both vocabularies and keeps nothing.
      implementation: None for the best on this platform; "chunked" or "reference".
      positions: positions of each sequence in a chunk of mode "forward".
      sharding: how tokens and vocabulary lie on the devices.

    Returns:
      total: fp32 scalar, differentiable in `head`.
      value_BL: the divergence of every token, fp32 [B, L].

    Raises InputError where the vocabularies differ, or a mode or implementation does not exist.
    """
    known(mode, ("forward", "recompute"))
    check_weights(weight_BL, head)
    known(implementation, ("chunked", "reference"))
    label_BL = jnp.zeros(weight_BL.shape, jnp.int32) if label_BL is None else label_BL
    target = Dense(label_BL, alike(head, teacher, pad=mode == "recompute" or sharding.splits_vocabulary))
    if implementation == "reference":
        return reference.linear_divergence(divergence, head, target, weight_BL)
    if mode == "recompute":
        if type(divergence).per_token is not Divergence.per_token:
            name = type(divergence).__name__
            raise InputError(
                f"{name} looks at all logits of a token at once, which mode 'recompute' never has; use 'forward'"
            )
        value_BL = tiled.divergence_of(divergence, sharding, head, target)
        return jnp.sum(weight_BL * value_BL), value_BL
    inputs = {"target": target, "weight_BL": weight_BL}
    total, values = streamed_sum(OnChunk(divergence), head, inputs, positions=positions, sharding=sharding)
    return total, values["divergence"]


@dataclasses.dataclass(frozen=True)
class OnChunk:
    """A divergence as a function of a chunk of the student's logits, with its gradient."""

    divergence: Divergence

    def __call__(self, z_BLV: Array, inputs: Any, vocabulary: Vocabulary, with_gradient: bool):
        weight_BL = inputs["weight_BL"]
        value_BL, dz_BLV = chunked.on_logits(
            self.divergence, z_BLV, inputs["target"], weight_BL, vocabulary, with_gradient
        )
        return weight_BL * value_BL, {"divergence": value_BL}, dz_BLV


def alike(head: Head, teacher: Head, *, pad: bool = True) -> Head:
    """The teacher, of the same vocabulary; with `pad`, of as many rows, so that tiles and shards hold the same ids."""
    if teacher.vocab_size != head.vocab_size:
        raise InputError(
            f"the teacher has a vocabulary of {teacher.vocab_size} and the student of {head.vocab_size}: "
            "their distributions can only be compared under one tokenizer"
        )
    rows, own = head.w_VD.shape[0], teacher.w_VD.shape[0]
    if own == rows or not pad:
        return teacher
    w_VD = jnp.pad(teacher.w_VD[:rows], ((0, max(0, rows - own)), (0, 0)))
    bias_V = None if teacher.bias_V is None else jnp.pad(teacher.bias_V[:rows], (0, max(0, rows - own)))
    return dataclasses.replace(teacher, w_VD=w_VD, bias_V=bias_V)
