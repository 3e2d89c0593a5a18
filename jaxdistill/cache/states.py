"""The last hidden states of a teacher in eight bits: with its output layer, its whole distribution.

Width + 4 bytes a token whatever the vocabulary, where a loss needs every entry.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.targets import Dense

STEPS = 127  # the largest of a token's numbers has this one, so rounding errs by up to 1 / 254 of it


@dataclasses.dataclass(frozen=True)
class LastStates:
    """Keep all of a teacher's distribution, as the hidden states that its output layer makes it of.

    Attributes:
      width: of the teacher, C.
    """

    width: int

    @property
    def size(self) -> int:
        """Entries of the vocabulary that a token has: none."""
        return 0

    def __call__(self, target: Dense, key: Any, index_BL: Any, sharding: Any) -> Dense:
        return target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class States:
    """Hidden states as they are stored, `scale_BL` `state_BLC` / STEPS: fp32 and int8; `label_BL` as in any target."""

    label_BL: Any
    state_BLC: Any
    scale_BL: Any

    def dense(self, head: Head) -> Dense:
        """The target that an output layer makes of them; the states of `head` are not looked at."""
        h_BLD = self.state_BLC.astype(head.w_VD.dtype) * (self.scale_BL / STEPS)[..., None].astype(head.w_VD.dtype)
        return Dense(self.label_BL, dataclasses.replace(head, h_BLD=h_BLD))


def quantise(h_BLC: Array) -> dict[str, Array]:
    """state_BLC, int32 from -STEPS to STEPS, and scale_BL, the largest magnitude of each token."""
    h_BLC = h_BLC.astype(jnp.float32)
    scale_BL = jnp.max(jnp.abs(h_BLC), axis=-1)
    state_BLC = jnp.round(h_BLC / jnp.maximum(scale_BL, 1e-30)[..., None] * STEPS)
    return {"state_BLC": state_BLC.astype(jnp.int32), "scale_BL": scale_BL}


def states(rows: Mapping[str, np.ndarray], label_BL: Any, width: int) -> States:
    """From the columns of B rows."""
    B, L = label_BL.shape
    return States(label_BL, rows["state"].reshape(B, L, width), rows["scale"])
