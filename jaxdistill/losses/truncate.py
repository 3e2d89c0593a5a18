"""A part of a teacher's tokens, the most probable or those of middling rank: transforms of whole distributions."""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.lazy import Lazy, lazy, real
from jaxdistill.losses.ranks import kth_largest, mass_before
from jaxdistill.losses.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Truncate:
    """The teacher's most probable tokens, at temperature 1.

    Attributes:
      rule: "top_k" keeps `amount` tokens, and ties with the last of them; "top_p" the fewest whose mass reaches
        `amount`, which it must sort them for, so it refuses a sharded vocabulary; "min_p" those of at least `amount`
        times the largest probability.
      amount: a whole number from 1 for top_k, above 0 and at most 1 for the others.
      tail: "drop" renormalises what is kept, "uniform" shares the rest of the mass evenly among the others.

    Raises InputError for another rule or tail, an amount out of range, or a vocabulary sharded where it must not be.
    """

    rule: Literal["top_k", "top_p", "min_p"]
    amount: float
    tail: Literal["drop", "uniform"] = "drop"

    def __post_init__(self):
        if self.rule not in ("top_k", "top_p", "min_p") or self.tail not in ("drop", "uniform"):
            raise InputError(
                f"Truncate has no rule {self.rule!r} with tail {self.tail!r}; rules are 'top_k', 'top_p' and 'min_p', "
                "tails 'drop' and 'uniform'"
            )
        whole = self.rule == "top_k"
        if not (self.amount >= 1 and self.amount == int(self.amount) if whole else 0 < self.amount <= 1):
            wanted = "a whole number from 1" if whole else "above 0 and at most 1"
            raise InputError(f"Truncate.amount is {self.amount}; for {self.rule} it must be {wanted}")

    def __call__(self, target: Any, knobs: Any) -> Lazy:
        def truncated(z_target_BLV, _, vocabulary):
            log_p_BLV = vocabulary.log_softmax(z_target_BLV)
            kept_BLV = self._kept(log_p_BLV, vocabulary)
            others_BLV = real(z_target_BLV) & ~kept_BLV
            return jnp.where(kept_BLV, log_p_BLV, self._log_other(log_p_BLV, others_BLV, vocabulary))

        return lazy(target, truncated)

    def _kept(self, log_p_BLV: Array, vocabulary: Vocabulary) -> Array:
        if self.rule == "min_p":
            return log_p_BLV >= vocabulary.max(log_p_BLV)[..., None] + math.log(self.amount)
        if self.rule == "top_p":
            return mass_before(log_p_BLV, vocabulary, "Truncate.top_p") < self.amount
        return log_p_BLV >= kth_largest(log_p_BLV, int(self.amount), vocabulary)[..., None]

    def _log_other(self, log_p_BLV: Array, others_BLV: Array, vocabulary: Vocabulary) -> Array:
        """What each token that is not kept gets."""
        if self.tail == "drop":
            return jnp.full_like(log_p_BLV, MASKED)
        mass_BL = vocabulary.sum(jnp.where(others_BLV, jnp.exp(log_p_BLV), 0))
        each_BL = jnp.log(mass_BL) - jnp.log(vocabulary.sum(others_BLV.astype(jnp.float32)))
        return jnp.where(others_BLV, each_BL[..., None], MASKED)


@dataclasses.dataclass(frozen=True)
class Clip:
    """The tokens before which the teacher's mass, from the most probable down, lies in [low, high), and the label.

    The band that divergence-aware clipping keeps (Liu et al. 2024, arXiv 2407.10068, DAC-KL), with bounds that are
    given: there a network finds them. (0, 1) keeps every token with any mass to speak of.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"Clip has bounds {self.low} and {self.high}; they must rise within 0 and 1")

    def __call__(self, target: Any, knobs: Any) -> Lazy:
        def clipped(z_target_BLV, _, vocabulary):
            before_BLV = mass_before(vocabulary.log_softmax(z_target_BLV), vocabulary, "Clip")
            in_band_BLV = (self.low <= before_BLV) & ((before_BLV < self.high) | (self.high == 1))
            at_label_BLV = vocabulary.at(target.label_BL, z_target_BLV.shape[-1])
            return jnp.where(in_band_BLV | at_label_BLV, z_target_BLV, MASKED)

        return lazy(target, clipped)
