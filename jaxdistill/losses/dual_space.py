"""DSKD: each model's states in the other's space, by attention between two tokenizations (Zhang et al. 2024).

The projections are trained beside the student, and are no part of it: they lie under "extras" among the parameters of a
run's checkpoint, where nobody looks who reads the model.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED, Head
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.linear_heads import token_values
from jaxdistill.losses.loss import RowLoss
from jaxdistill.losses.statistics import IsTop
from jaxdistill.losses.targets import Dense, Labels


class Side(NamedTuple):
    """One model on its own tokens.

    Attributes:
      head: its head, h_BLD.
      index_BLAD: embeddings of a place's input and of its label.
      label_BL: int32.
      weight_BL: fp32.
    """

    head: Head
    index_BLAD: Array
    label_BL: Array
    weight_BL: Array


@dataclasses.dataclass(frozen=True)
class DualSpace(RowLoss):
    """Dual-space knowledge distillation with cross-model attention (DSKD, arXiv 2406.17328), per token of the student.

    A place of the student looks for places of the teacher by the embeddings of its input and label, so no alignment is
    needed. With a = softmax(query(e) k^T / sqrt(2 C)) over the teacher's row, and back over the student's:

        h_ts = a to_student(h' + e')         z_ts by the student's output layer, which stays as it is
        h_st = a^T to_teacher(h)             z_st by the teacher's

        CE(z_ts, label) + 1{argmax z_ts = label} D(z_ts || z)  +  the row's sum of KL(p || z_st), shared by its tokens

    where h' and e' are the teacher's states and embeddings of labels, divided by their root mean square in the row (the
    released code takes that of the batch, which would change with the micro-batches). The first term trains the
    projections alone, the second, whose z_ts is data, the student alone.

    Attributes:
      divergence: D, of the student from z_ts.
    """

    divergence: Any = ForwardKL()

    def init(self, key: Array, width: int, teacher_width: int) -> dict[str, Array]:
        """The projections, fp32, normal with variance 1 over the width they read."""
        keys, D, C = jax.random.split(key, 3), width, teacher_width
        return {
            "query_ADAC": jax.random.normal(keys[0], (2, D, 2, C)) / math.sqrt(2 * D),
            "to_teacher_DC": jax.random.normal(keys[1], (D, C)) / math.sqrt(D),
            "to_student_CD": jax.random.normal(keys[2], (C, D)) / math.sqrt(C),
        }

    def __call__(self, projections: Mapping[str, Array], own: Side, other: Any, **streaming: Any) -> Array:
        """fp32 [B, L]; differentiable in the projections and in the student's head.

        `other` is the teacher's Side, `streaming` as `token_values` takes it.
        Raises InputError where there is no teacher of another tokenizer.
        """
        if other is None:
            raise InputError("DSKD reads a teacher on its own tokens: set experiment.teacher to Across")
        score_BLM = _scores(projections["query_ADAC"], own, other)
        h_ts_BLD = _mixed(score_BLM, other.weight_BL, _states(other) @ projections["to_student_CD"])
        own_BLC = jnp.float32(own.head.h_BLD) @ projections["to_teacher_DC"]
        h_st_BMC = _mixed(jnp.swapaxes(score_BLM, 1, 2), own.weight_BL, own_BLC)
        there = dataclasses.replace(other.head, h_BLD=h_st_BMC.astype(other.head.h_BLD.dtype))
        here = dataclasses.replace(jax.lax.stop_gradient(own.head), h_BLD=h_ts_BLD.astype(own.head.h_BLD.dtype))
        losses, said = {"ce": CrossEntropy(), "top": IsTop()}, Dense(own.label_BL, jax.lax.stop_gradient(here))
        values = token_values(losses, here, Labels(own.label_BL), own.weight_BL, **streaming)
        near_BL = token_values({"kl": self.divergence}, own.head, said, own.weight_BL, **streaming)["kl"]
        target = Dense(other.label_BL, other.head)
        back_BM = token_values({"kl": ForwardKL()}, there, target, other.weight_BL, **streaming)["kl"]
        return values["ce"] + jax.lax.stop_gradient(values["top"]) * near_BL + _shared(back_BM, own, other)


def _scores(query_ADAC: Array, own: Side, other: Side) -> Array:
    """What each place of the student thinks of each of the teacher, fp32 [B, L, M]; the embeddings are data."""
    index_BLAD = jnp.float32(jax.lax.stop_gradient(own.index_BLAD))
    key_BMEC = _unit(other.index_BLAD, other.weight_BL)
    query_BLEC = jnp.einsum("blad,adec->blec", index_BLAD, query_ADAC)
    return jnp.einsum("blec,bmec->blm", query_BLEC, key_BMEC) / math.sqrt(2 * key_BMEC.shape[-1])


def _states(other: Side) -> Array:
    """What the student reads: states and embeddings of labels, fp32 [B, M, C]."""
    return _unit(other.head.h_BLD, other.weight_BL) + _unit(other.index_BLAD[:, :, 1], other.weight_BL)


def _mixed(score_BLM: Array, weight_BM: Array, value_BMD: Array) -> Array:
    """Attention to the places that count."""
    score_BLM = jnp.where(weight_BM[:, None] > 0, score_BLM, MASKED)
    return jnp.einsum("blm,bmd->bld", jax.nn.softmax(score_BLM, axis=-1), value_BMD)


def _unit(x: Array, weight_BL: Array) -> Array:
    """x over its root mean square at the places of its row that count, fp32 [B, L, ...]."""
    x, axes = jnp.float32(x), tuple(range(1, x.ndim))
    counts = (weight_BL > 0).reshape(weight_BL.shape + (1,) * (x.ndim - 2))
    number = jnp.maximum(jnp.sum(counts, axis=axes, keepdims=True), 1) * math.prod(x.shape[2:])
    square = jnp.sum(jnp.where(counts, x**2, 0), axis=axes, keepdims=True) / number
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1))


def _shared(back_BM: Array, own: Side, other: Side) -> Array:
    """The sum over the teacher's tokens of a row, in equal parts on the student's, fp32 [B, L]."""
    whole_B1 = jnp.sum(other.weight_BL * back_BM, axis=-1, keepdims=True)
    number_B1 = jnp.sum(own.weight_BL, axis=-1, keepdims=True)
    return jnp.where(own.weight_BL > 0, whole_B1 / jnp.where(number_B1 > 0, number_B1, 1), 0)
