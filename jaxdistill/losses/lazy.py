"""Lazy targets: a distribution made of others, which exists for the chunk of logits that a loss looks at."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED, Head
from jaxdistill.losses.targets import Dense, logits_like
from jaxdistill.losses.vocabulary import WHOLE, Vocabulary


@dataclasses.dataclass(frozen=True)
class Lazy:
    """What a transform returns: it stands for a whole distribution as `Dense` does.

    Attributes:
      label_BL: the token of the data.
      make: (z_BLV, vocabulary) -> the target's logits, from the student's and whatever it has closed over.
      references: heads of further frozen models by name.
    """

    label_BL: Array
    make: Callable[[Array, Vocabulary], Array]
    references: Mapping[str, Head] = dataclasses.field(default_factory=dict)

    def logits(self, z_BLV: Array, vocabulary: Vocabulary = WHOLE) -> Array:
        """The target's logits on the columns of the student's logits `z_BLV`, through which no gradient passes."""
        return jax.lax.stop_gradient(self.make(jax.lax.stop_gradient(z_BLV), vocabulary))


def lazy(target: Any, change: Callable[[Array, Array, Vocabulary], Array]) -> Lazy:
    """The target whose logits are change(logits of `target`, z_BLV, vocabulary).

    Raises InputError where `target` is not a whole distribution.
    """
    check_whole_distribution(target)
    make = lambda z_BLV, vocabulary: change(target.logits(z_BLV, vocabulary), z_BLV, vocabulary)  # noqa: E731
    return Lazy(target.label_BL, make, target.references)


def check_whole_distribution(target: Any) -> None:
    """Raise InputError where the target is not a whole distribution."""
    if not isinstance(target, Dense | Lazy):
        raise InputError(
            f"this transform needs a teacher's whole distribution, not {type(target).__name__}: "
            "set experiment.teacher to an online one"
        )


def reference_logits(target: Any, name: str, z_BLV: Array, vocabulary: Vocabulary) -> Array:
    """Logits of one of the target's references.

    Raises InputError where there is none of this name.
    """
    check_whole_distribution(target)
    if name not in target.references:
        known = ", ".join(map(repr, target.references)) or "none"
        raise InputError(
            f"there is no reference model {name!r} beside the teacher (there are: {known}); name it in the experiment"
        )
    return logits_like(target.references[name], z_BLV, vocabulary)


def knob(value: Any, knobs: Mapping[str, Any]) -> Any:
    """A number; or, given a name, the value of that knob, [B, L] where its letters say that each token has its own.

    Raises InputError where there is no such knob.
    """
    if not isinstance(value, str):
        return value
    if value not in knobs:
        known = ", ".join(map(repr, knobs)) or "none"
        raise InputError(f"there is no knob {value!r} (there are: {known}); add a controller or signal of that name")
    return knobs[value]


def check_part(transform: Any, name: str) -> None:
    """Raise InputError where a part of a mixture is a number outside 0 to 1."""
    value = getattr(transform, name)
    if not isinstance(value, str) and not 0 <= value <= 1:
        raise InputError(f"{type(transform).__name__}.{name} is {value}; it must lie from 0 to 1")


def each_column(x: Any) -> Any:
    """A number, or one of each token as [B, L, 1], to go with arrays [B, L, V]."""
    return x[..., None] if jnp.ndim(x) else x


def real(z_BLV: Array) -> Array:
    """bool [B, L, V]: false in the columns of a padded vocabulary."""
    return z_BLV > MASKED / 2
