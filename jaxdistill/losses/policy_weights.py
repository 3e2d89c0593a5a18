"""Weights that make an alignment objective of a loss on given tokens: normalised rewards, preferences, token strengths.

The gradient of such an objective is that of a plain loss with a weight, signed and without gradient, on each token.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.loss import Loss
from jaxdistill.losses.statistics import MassBelowTeacher, TeacherCrossEntropy, ToReference
from jaxdistill.losses.total_variation import TotalVariation
from jaxdistill.losses.transforms import L1Gap
from jaxdistill.losses.weights import Signals, Values, per_sequence, signal, times


@dataclasses.dataclass(frozen=True)
class OverRewardStd:
    """weight / std of the reward 1{p > q} of a token drawn from the student (TVD++, arXiv 2403.00858).

    Total variation is a policy gradient with this reward, and TVD++ takes (reward - mean) / std over the batch in place
    of it. The mean has no gradient in expectation, which is taken exactly here, so only the std is left: over all
    tokens of the batch, mean (1 - mean) of a reward that is 0 or 1. A batch without a difference keeps its weight.
    """

    def statistics(self) -> Mapping[str, Loss]:
        return {"rewarded": MassBelowTeacher()}

    def __call__(self, values: Values, target: Any, weight_BL: Array, signals: Signals) -> Array:
        counts_BL = (weight_BL != 0).astype(jnp.float32)
        rewarded = jnp.sum(times(counts_BL, values["rewarded"])) / jnp.maximum(jnp.sum(counts_BL), 1)
        variance = jax.lax.stop_gradient(rewarded * (1 - rewarded))
        return weight_BL * jnp.where(variance > 0, jax.lax.rsqrt(jnp.where(variance > 0, variance, 1)), 1)


@dataclasses.dataclass(frozen=True)
class OverGap:
    """weight beta / gap: the strength beside a target moved by `Extrapolate(away, weight=gap)` (AlignDistil)."""

    away: str
    gap: L1Gap
    beta: float = 0.1

    def statistics(self) -> Mapping[str, Loss]:
        return {"distance": ToReference(TotalVariation(), self.away)}

    def __call__(self, values: Values, target: Any, weight_BL: Array, signals: Signals) -> Array:
        distance_BL = 2 * jax.lax.stop_gradient(values["distance"])  # total variation is half the L1 distance
        return times(weight_BL, self.beta / self.gap.of(distance_BL))


@dataclasses.dataclass(frozen=True)
class Preference:
    """sign beta sigmoid(-beta margin): with CrossEntropy, the gradient of DPO with the teacher as reference.

    margin = sum over a pair of sign (log q - log p), from arXiv 2305.18290, eq. 7. A pair lies in one row, its two
    answers as two segments, so that no micro-batch divides it. The value of the term is not the DPO loss.

    Attributes:
      beta: as in DPO.
      sign: signal that is 1 on the tokens of chosen answers, -1 on those of rejected ones and 0 elsewhere.
      pair: signal with the number of the pair in its row, int32 from 1 to L.
    """

    beta: float = 0.1
    sign: str = "preference"
    pair: str = "pair"

    def statistics(self) -> Mapping[str, Loss]:
        return {"student": CrossEntropy(), "teacher": TeacherCrossEntropy()}

    def __call__(self, values: Values, target: Any, weight_BL: Array, signals: Signals) -> Array:
        sign_BL = times(weight_BL, signal(signals, self.sign))
        gain_BL = jax.lax.stop_gradient(values["teacher"] - values["student"])  # log q - log p
        margin_BL = per_sequence(times(sign_BL, gain_BL), {"segment": signal(signals, self.pair)})
        return self.beta * sign_BL * jax.nn.sigmoid(-self.beta * margin_BL)
