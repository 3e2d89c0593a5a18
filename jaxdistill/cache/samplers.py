"""Samplers: what is kept of a teacher's distribution, at most `size` entries a token.

    Top     the k most probable tokens                       biased, and no more so than it says: the tail is a number
    TopP    as many of them as it takes for a mass           the same, with more entries where the teacher is unsure
    Draws   random tokens with replacement (RS-KD)           E[weight] = p
    PPS     a fixed number of different random tokens        E[weight] = p, with the least variance for its entries

A sampler is called with a Dense target, a key, the tokens' numbers [B, L] and how all this lies on the devices, and
returns the target that is left. What is random depends on the key, a token's number and its logits alone. Below, p is
the teacher at temperature 1; of a random sample no other temperature can be made afterwards.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.linear_heads import Sharding, linear_pps, linear_sample, linear_top_k
from jaxdistill.losses.linear_heads.sample.api import MOST_ROUNDS
from jaxdistill.losses.targets import NO_ID, Dense, Sampled, TopK


@dataclasses.dataclass(frozen=True)
class Top:
    """Keep a teacher's k most probable tokens and the mass of the others.

    Nothing is random. With a the mass that is kept, p / a is the distribution of k tokens nearest to p in L1, 2 (1 - a)
    away; how a student is biased depends on what its loss makes of the rest (see `losses.top_k.TopKDivergence`).

    Raises InputError where k is below 1; a call, where the vocabulary is smaller.
    """

    k: int

    def __post_init__(self):
        _check_entries("Top.k", self.k)

    @property
    def size(self) -> int:
        """S, the most entries that a token has."""
        return self.k

    def __call__(self, target: Dense, key: Array, index_BL: Array, sharding: Sharding) -> TopK:
        top = linear_top_k(target.head, self.k, sharding=sharding)
        return TopK.of(target.label_BL, top.id_BLS, top.logp_BLS)


@dataclasses.dataclass(frozen=True)
class TopP:
    """Keep the smallest set of tokens whose mass is at least `mass`, and the mass of the others.

    The nucleus of Holtzman et al. 2020 (arXiv 1904.09751), as a target: a Top whose k is each token's own.

    Attributes:
      mass: above 0, at most 1.
      most: entries at most; where they hold less than `mass`, all of them are kept.

    Raises InputError where a number is out of range; a call, where the vocabulary is smaller than `most`.
    """

    mass: float
    most: int

    def __post_init__(self):
        if not 0 < self.mass <= 1:
            raise InputError(f"TopP.mass is {self.mass}; it must be above 0 and at most 1")
        _check_entries("TopP.most", self.most)

    @property
    def size(self) -> int:
        """S, the most entries that a token has."""
        return self.most

    def __call__(self, target: Dense, key: Array, index_BL: Array, sharding: Sharding) -> TopK:
        top = linear_top_k(target.head, self.most, sharding=sharding)
        p_BLS = jnp.exp(top.logp_BLS)
        is_kept_BLS = jnp.cumsum(p_BLS, axis=-1) - p_BLS < self.mass  # what comes before an entry does not suffice
        id_BLS = jnp.where(is_kept_BLS, top.id_BLS, NO_ID)
        return TopK.of(target.label_BL, id_BLS, jnp.where(is_kept_BLS, top.logp_BLS, MASKED))


@dataclasses.dataclass(frozen=True)
class Draws:
    """Keep `rounds` random tokens, whose weights are the teacher's distribution in expectation.

    Random sampling knowledge distillation (RS-KD, arXiv 2503.16870): draws with replacement from q ~ p^exponent, and
    the weight (count / rounds) p / q. At exponent 1 that is count / rounds and sums to one; at others weights are not
    normalised, which would bias them by O(1 / rounds), and their sum is random with mean one.

      "multinomial"  independent draws: Var[w] = (p^2 / q - p^2) / rounds. Over all ids that is least at exponent 1,
                     (1 - |p|^2) / rounds, and alike at 1 - x and 1 + x. Ids kept: sum_v 1 - (1 - q_v)^rounds expected.
      "systematic"   equal steps from one random offset (Madow 1949): counts are rounds q rounded down or up, and with
                     f the fraction of rounds q, Var[w] = f (1 - f) (p / q / rounds)^2, which is never more.

    Attributes:
      rounds: draws a token.
      sampler: "multinomial" as published, or "systematic".
      exponent: above 0; what the paper calls the temperature of the proposal.

    Raises InputError where a sampler does not exist or a number is out of range.
    """

    rounds: int = 50
    sampler: Literal["multinomial", "systematic"] = "multinomial"
    exponent: float = 1.0

    def __post_init__(self):
        if self.sampler not in ("multinomial", "systematic"):
            raise InputError(f"there is no sampler {self.sampler!r}; there are 'multinomial' and 'systematic'")
        _check_entries("Draws.rounds", self.rounds, MOST_ROUNDS)
        if not self.exponent > 0:
            raise InputError(f"Draws.exponent is {self.exponent}; it must be above 0, so that it prefers the probable")

    @property
    def size(self) -> int:
        """S, the most entries that a token has."""
        return self.rounds

    def __call__(self, target: Dense, key: Array, index_BL: Array, sharding: Sharding) -> Sampled:
        drawn = linear_sample(
            target.head, self.rounds, key, index_BL=index_BL, sampler=self.sampler, exponent=self.exponent,
            sharding=sharding,
        )  # fmt: skip
        return Sampled(target.label_BL, drawn.id_BLS, drawn.weight_BLS)


@dataclasses.dataclass(frozen=True)
class PPS:
    """Keep `size` different random tokens, whose weights are the teacher's distribution in expectation.

    Systematic sampling with probability proportional to size, in survey statistics' words: a token is included with
    probability min(1, p / t), where the threshold t makes these sum to `size`, and weighs max(p, t). The largest
    probabilities are thus kept as they are, and chance decides about the others alone. Weights sum to one, and
    Var[w] = p max(t - p, 0), whose sum over all tokens is the least that unbiased weights with as many entries can
    have (Cohen, Duffield, Kaplan, Lund and Thorup 2011, SIAM Journal on Computing 40).

    Attributes:
      size: S, the entries of every token; fewer where fewer tokens have a probability above 2^-30.

    Raises InputError where the number is out of range; a call, where the vocabulary is smaller.
    """

    size: int

    def __post_init__(self):
        _check_entries("PPS.size", self.size, MOST_ROUNDS)

    def __call__(self, target: Dense, key: Array, index_BL: Array, sharding: Sharding) -> Sampled:
        drawn = linear_pps(target.head, self.size, key, index_BL=index_BL, sharding=sharding)
        return Sampled(target.label_BL, drawn.id_BLS, drawn.weight_BLS)


Sampler = Top | TopP | Draws | PPS


def _check_entries(name: str, number: int, most: int | None = None) -> None:
    """Refuses a number of entries that no token can have."""
    if number < 1 or (most is not None and number > most):
        raise InputError(f"{name} is {number}; it must be at least 1" + (f" and at most {most}" if most else ""))
