"""The definition: draw tokens with replacement, and weight them so that the expected weight is the probability.

Random sampling knowledge distillation (RS-KD, arXiv 2503.16870): draw N ids from q ~ p^exponent, and give one that was
drawn c times the weight (c / N) (p / q). The weights are not normalised: dividing by their sum would bias them.

Probabilities become integers first, masses, and q is a mass over their total. Sums of integers do not round, so the
cumulative distribution is the same in whatever order and pieces it is added up, no draw falls beside it, and an id
without mass, a padded one above all, is never drawn. The price is an error of up to 2^-29 in a probability.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.targets import NO_ID
from jaxdistill.losses.vocabulary import WHOLE, Vocabulary

UNIT = 2**29  # the mass of probability one, before the normaliser is rounded: the total stays below 2^30


class Sample(NamedTuple):
    """The ids that were drawn for every token, ascending and without duplicates, at the front of S = rounds entries.

    Attributes:
      id_BLS: int32; NO_ID in entries that hold nothing.
      weight_BLS: (count / rounds) p / q, fp32; 0 in entries that hold nothing. E[weight] = p.
      count_BLS: how often each id was drawn, int32; the counts of a token sum to `rounds`.
      lse_BL: the log-normaliser of the logits, fp32.
    """

    id_BLS: Array
    weight_BLS: Array
    count_BLS: Array
    lse_BL: Array


def sample(head: Head, rounds: int, key: Array, index_BL: Array, sampler: str, exponent: float) -> Sample:
    """`rounds` draws a token by inverting the cumulative distribution over the whole vocabulary."""
    z_BLV = head.logits()
    lse_BL, lse_q_BL = normalisers(z_BLV, exponent, WHOLE)
    cumulative_BLV = jnp.cumsum(masses(z_BLV, lse_q_BL[..., None], exponent), axis=-1)
    point_BLS = points(key, index_BL, cumulative_BLV[..., -1], rounds, sampler)
    return weighted(invert(cumulative_BLV, point_BLS), z_BLV, lse_BL, lse_q_BL, exponent, WHOLE)


def normalisers(z_BLV: Array, exponent: float, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """Log-normalisers of p ~ exp z and of q ~ p^exponent ~ exp(exponent z), fp32 [B, L] each."""
    lse_BL = vocabulary.lse(z_BLV)
    return lse_BL, lse_BL if exponent == 1 else vocabulary.lse(exponent * z_BLV)


def masses(z: Array, lse_q: Array, exponent: float) -> Array:
    """q in integers, int32, for logits in whatever arrangement and a normaliser that goes with it.

    The normaliser is rounded to a whole number, a factor that all masses share: then its own rounding errors, which
    depend on the order of summation, reach no mass.
    """
    return jnp.round(UNIT * jnp.exp(exponent * z - jnp.round(lse_q))).astype(jnp.int32)


def points(key: Array, index_BL: Array, total_BL: Array, rounds: int, sampler: str) -> Array:
    """Where to look up the cumulative masses, int32 [B, L, S] in [0, total), from a key of each token's own.

    multinomial: independent and uniform. systematic: `steps` from a uniform offset.
    """

    def of_token(index, total):
        own = jax.random.fold_in(key, index)
        if sampler == "multinomial":
            return below(total, own, (rounds,))
        return steps(below(total, own, ()), total, rounds)

    return jax.vmap(jax.vmap(of_token))(index_BL, total_BL)


def below(total: Array, key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform integers in [0, total), int32: the whole part of total x, with x a uniform multiple of 2^-32.

    (Lemire 2019, arXiv 1805.10941.) `jax.random.randint` will not do: it takes 32 bits modulo the total, which of a
    total of 0.9 x 2^30 makes the lower half 12 % too likely.
    """
    bits = jax.random.bits(key, shape, jnp.uint32)
    return upper_half(jnp.broadcast_to(total, shape).astype(jnp.uint32), bits).astype(jnp.int32)


def upper_half(x: Array, y: Array) -> Array:
    """The upper 32 of the 64 bits of x y, uint32, by halves (`jax.lax.mulhi` does not compile for several devices)."""
    (x1, x0), (y1, y0) = ((n >> 16, n & 0xFFFF) for n in (x, y))
    middle = x1 * y0 + (x0 * y0 >> 16)
    other = x0 * y1 + (middle & 0xFFFF)
    return x1 * y1 + (middle >> 16) + (other >> 16)


def steps(offset: Array, total: Array, rounds: int) -> Array:
    """(j total + offset) / rounds rounded down, for j = 0 ... rounds - 1: equal steps, as far as integers go.

    They meet an id of mass m floor or ceil of rounds m / total times, on average over the offsets exactly that often.
    """
    return step(jnp.arange(rounds), offset, total, rounds)


def step(j: Array, offset: Array, total: Array, rounds: Array | int) -> Array:
    """(j total + offset) / rounds rounded down, in 31 bits: j < rounds <= 2^15, offset < total < 2^30."""
    # j total = rounds j (total // rounds) + j (total % rounds), of which the first is divided before it is multiplied
    return j * (total // rounds) + (j * (total % rounds) + offset) // rounds


def invert(cumulative_BLV: Array, point_BLS: Array) -> Array:
    """The first column whose cumulative mass exceeds the point: [B, L, S]."""
    search = lambda cumulative_V, point_S: jnp.searchsorted(cumulative_V, point_S, side="right")  # noqa: E731
    return jax.vmap(jax.vmap(search))(cumulative_BLV, point_BLS).astype(jnp.int32)


def weighted(
    drawn_BLS: Array, z_BLV: Array, lse_BL: Array, lse_q_BL: Array, exponent: float, vocabulary: Vocabulary
) -> Sample:
    """Counts in place of repetitions, and (count / rounds) p / q with p / q = exp((1 - exponent) z - lse + lse_q)."""
    id_BLS, count_BLS = distinct(drawn_BLS)
    z_BLS = vocabulary.pick(z_BLV, id_BLS)
    log_ratio_BLS = (1 - exponent) * z_BLS + (lse_q_BL - lse_BL)[..., None]
    ratio_BLS = jnp.exp(jnp.where(count_BLS > 0, log_ratio_BLS, 0))  # an entry without an id has no logit either
    weight_BLS = count_BLS / drawn_BLS.shape[-1] * ratio_BLS
    return Sample(id_BLS, weight_BLS, count_BLS, lse_BL)


def distinct(drawn_BLS: Array) -> tuple[Array, Array]:
    """(ids, counts): each id once, ascending, then NO_ID with count 0."""
    S = drawn_BLS.shape[-1]
    drawn_BLS = jnp.sort(drawn_BLS)
    new_BLS = drawn_BLS != jnp.roll(drawn_BLS, 1, axis=-1)
    new_BLS = new_BLS.at[..., 0].set(True)
    start_BLS = jnp.sort(jnp.where(new_BLS, jnp.arange(S), S))  # where each run of one id begins; S where none does
    count_BLS = jnp.diff(start_BLS, axis=-1, append=jnp.full_like(start_BLS[..., :1], S))
    id_BLS = jnp.take_along_axis(drawn_BLS, jnp.minimum(start_BLS, S - 1), axis=-1)
    return jnp.where(start_BLS < S, id_BLS, NO_ID), count_BLS
