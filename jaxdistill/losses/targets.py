"""Targets: what is known about the next token. The type says how much, and every one of them carries the data's token.

A target is made before the gradient is taken, by the data or by a teacher; a loss cannot tell which.
"""

import dataclasses

import jax
from jax import Array

from jaxdistill.head import Head


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
    """The token of the data and nothing else: `label_BL`, int32."""

    label_BL: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """A teacher's whole distribution, as the Head that makes it; logits exist only for the chunk a loss looks at."""

    label_BL: Array
    head: Head


Target = Labels | Dense
