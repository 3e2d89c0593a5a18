"""Numbers of a token that weights are made of, written as losses, so that one pass over the heads gives them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.lazy import reference_logits
from jaxdistill.losses.loss import Divergence
from jaxdistill.losses.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class TeacherCrossEntropy(Divergence):
    """-log p(label), in nats: what the teacher itself pays for the token of the data."""

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        return (jnp.where(at_label_BLV, -log_p_BLV, 0.0),)


@dataclasses.dataclass(frozen=True)
class TeacherEntropy(Divergence):
    """-sum_v p_v log p_v, in nats."""

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        return (-jnp.exp(log_p_BLV) * log_p_BLV,)


@dataclasses.dataclass(frozen=True)
class MassBelowTeacher(Divergence):
    """sum_v q_v 1{p_v > q_v}: how probable it is that a token of the student is one it should say more often."""

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        return (jnp.where(log_p_BLV > log_q_BLV, jnp.exp(log_q_BLV), 0.0),)


@dataclasses.dataclass(frozen=True)
class ToReference(Divergence):
    """A divergence between the teacher and one of its references, which takes the student's place."""

    divergence: Divergence
    reference: str

    def per_token(self, log_p_BLV: Array, log_q_BLV: Array, target: Any, vocabulary: Vocabulary) -> tuple[Array, ...]:
        inner = self.divergence
        z_BLV = reference_logits(target, self.reference, log_q_BLV, vocabulary)
        log_p_BLV = inner.log_p(z_BLV, target, vocabulary)
        log_r_BLV = vocabulary.log_softmax(z_BLV / inner.temperature)
        points_BLV = inner.points(log_p_BLV, log_r_BLV, *inner.fixed(log_p_BLV, log_r_BLV, target, vocabulary))
        return (inner.value(*map(vocabulary.sum, points_BLV)),)

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        return (jnp.where(at_label_BLV, of_token[0], 0.0),)


@dataclasses.dataclass(frozen=True)
class IsTop(Divergence):
    """1 where no token is more probable to the student than the label, else 0."""

    def log_p(self, z_BLV: Array, target: Any, vocabulary: Vocabulary) -> Array:
        """Nothing: no teacher has a part in it."""
        return jnp.zeros_like(z_BLV)

    def per_token(self, log_p_BLV: Array, log_q_BLV: Array, target: Any, vocabulary: Vocabulary) -> tuple[Array, ...]:
        return (vocabulary.max(log_q_BLV),)

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        return (jnp.where(at_label_BLV & (log_q_BLV >= of_token[0]), 1.0, 0.0),)
