"""Losses on hidden states as terms of an objective: which layers of the student look at which of the teacher."""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError


@dataclasses.dataclass(frozen=True)
class Layers:
    """The mean of a loss on hidden states over pairs of layers.

    Attributes:
      loss: (h_BLD, h_teacher_BLD, weight_BL) -> fp32 [B, L], such as `states.CosineDistance()`.
      pairs: (layer of the student, layer of the teacher), counted from 0, or backward from -1.
    """

    loss: Callable[[Array, Array, Array], Array]
    pairs: tuple[tuple[int, int], ...]

    def __post_init__(self):
        if not self.pairs:
            raise InputError("a loss on hidden states needs at least one pair of layers, such as pairs=((-1, -1),)")

    def __call__(self, student: Mapping[int, Array], teacher: Mapping[int, Array], weight_BL: Array) -> Array:
        """The states of both by layer, [B, L, D] each, to fp32 [B, L]."""
        if missing := [there for _, there in self.pairs if there not in teacher]:
            raise InputError(f"no teacher gives the hidden states of layer {missing[0]}: set experiment.teacher")
        values = [self.loss(student[here], teacher[there], weight_BL) for here, there in self.pairs]
        return jnp.mean(jnp.stack(values), axis=0)
