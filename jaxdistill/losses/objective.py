"""An objective: a weighted sum of terms over the logits of one chunk of tokens.

A loss is any frozen dataclass that maps (z_BLV, target) to one fp32 number per token: losses see chunks of logits,
never all of them, and leave every sum over tokens to `linear_heads` and `reduce`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.targets import Target

Loss = Callable[[Array, Target], Array]


@dataclasses.dataclass(frozen=True)
class Term:
    """coef * loss. Presence, not size, turns a term on.

    Attributes:
      loss: maps (z_BLV, target) to fp32 [B, L].
      coef: a number, or a schedule called as coef(step, steps).
    """

    loss: Any
    coef: Any = 1.0

    def at(self, step: int, steps: int) -> float:
        """The coefficient at one step of `steps`."""
        return float(self.coef(step, steps) if callable(self.coef) else self.coef)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The losses of an objective by name. Coefficients are an input, so that a schedule never recompiles the step."""

    losses: tuple[tuple[str, Loss], ...]

    @classmethod
    def of(cls, terms: Mapping[str, Term]) -> "Objective":
        return cls(tuple((name, term.loss) for name, term in terms.items()))

    def __call__(self, z_BLV: Array, target: Target, coef: Mapping[str, Any]) -> tuple[Array, dict[str, Array]]:
        """The weighted sum, fp32 [B, L], and the value of every term by itself."""
        values = {name: loss(z_BLV, target) for name, loss in self.losses}
        return jnp.sum(jnp.stack([coef[name] * value for name, value in values.items()]), axis=0), values
