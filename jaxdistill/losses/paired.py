"""Losses between distributions over two vocabularies, at places where both models have read the same text.

Each is called with log-probabilities of student and teacher, [B, L, V] with a V of each one's own, and gives fp32
[B, L]. `alongside.compare` finds the places and forms the logits of a few of them at a time: what sorts a vocabulary
cannot stream it.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.jensen_shannon import JensenShannon
from jaxdistill.losses.sorted_l1 import sorted_distance

Places = Literal["single", "begin", "row"]


class PairedLoss:
    """What all have in common.

    Attributes:
      merges: whether each side's distribution is multiplied by what it gives the chunk's other tokens.
      needs_match: whether it must know which ids of the two vocabularies spell the same.
    """

    merges: ClassVar[bool] = False
    needs_match: ClassVar[bool] = False

    @property
    def places(self) -> Places:
        """Which are compared: before chunks of one token on both sides ("single"), before all chunks ("begin"), or
        those of the same number in their rows, whatever their text ("row")."""
        raise NotImplementedError

    def __call__(self, log_q_BLV: Array, log_p_BLV: Array, match_V: Any) -> Array:
        """`match_V` is int32 in NumPy, the teacher's id for each of the student's, negative where it has none."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PairedSortedL1(PairedLoss):
    """sum_i |sort(q)_i - sort(p)_i| (ULD, arXiv 2402.12030), where both predict the same piece of text.

    As published it compares places of the same number, at="row": of two tokenizers that is soon other text.

    Attributes:
      at: the places, as `PairedLoss.places` has them.
    """

    at: Places = "single"

    def __post_init__(self):
        if self.at not in ("single", "begin", "row"):
            raise InputError(f"PairedSortedL1.at is {self.at!r}; it must be 'single', 'begin' or 'row'")

    @property
    def places(self) -> Places:
        return self.at

    def __call__(self, log_q_BLV: Array, log_p_BLV: Array, match_V: Any) -> Array:
        return sorted_distance(jnp.exp(log_q_BLV), jnp.exp(log_p_BLV))


@dataclasses.dataclass(frozen=True)
class Gold(PairedLoss):
    """GOLD's hybrid loss before each chunk (Patino et al. 2025, Unlocking On-Policy Distillation for Any Model Family).

    P(v) = p(v | the text so far) p(the other tokens of the teacher's chunk), and Q likewise of the student's: the chunk
    as one token whose beginning is v. Ids that both spell alike are compared by name, the others by rank:

        matched sum_v beta P log(P / M) + (1 - beta) Q log(Q / M)  +  unmatched sum_i |sort(Q)_i - sort(P)_i|

    with M = beta P + (1 - beta) Q. By default `matched` is the share of the teacher's ids that have a match, and
    `unmatched` the rest, as in TRL. TRL's first releases multiplied whole distributions of a chunk instead.

    Attributes:
      beta: the teacher's part, above 0 and below 1.
      matched, unmatched: factors, both or none.
    """

    beta: float = 0.5
    matched: float | None = None
    unmatched: float | None = None

    merges = True
    needs_match = True

    def __post_init__(self):
        if not 0 < self.beta < 1:
            raise InputError(f"Gold.beta is {self.beta}; it must lie above 0 and below 1")
        if (self.matched is None) != (self.unmatched is None):
            raise InputError("Gold.matched and Gold.unmatched go together: give both factors, or none")

    @property
    def places(self) -> Places:
        return "begin"

    def __call__(self, log_q_BLV: Array, log_p_BLV: Array, match_V: Any) -> Array:
        ids = log_p_BLV.shape[-1]
        has_V, there_V = match_V >= 0, np.maximum(match_V, 0)
        is_taken_V = np.isin(np.arange(ids), match_V)
        log_same_BLV = jnp.where(has_V, log_p_BLV[..., there_V], log_q_BLV)
        (by_name_BLV,) = JensenShannon(self.beta).points(log_same_BLV, log_q_BLV, has_V)
        by_rank_BL = sorted_distance(
            jnp.where(has_V, 0, jnp.exp(log_q_BLV)), jnp.where(is_taken_V, 0, jnp.exp(log_p_BLV))
        )
        share = float(is_taken_V.mean()) if self.matched is None else self.matched
        rest = 1 - share if self.unmatched is None else self.unmatched
        return share * jnp.sum(jnp.where(has_V, by_name_BLV, 0), axis=-1) + rest * by_rank_BL
