"""The definition: S different tokens, each with the inclusion probability min(1, p / threshold).

Systematic sampling with probability proportional to size (systematic PPS; Madow 1949, Annals of Mathematical Statistics
20). Ids whose share of S entries would be one or more are taken for certain; the others divide the entries that are
left by equal steps along their cumulative distribution, from one random offset. An id's weight is its probability over
its inclusion probability (Horvitz and Thompson 1952): p for a certain one, the threshold for any other.

As in `sample.reference`, probabilities become integers first, here called masses.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.sample.reference import below, invert, masses, step
from jaxdistill.losses.targets import NO_ID
from jaxdistill.losses.vocabulary import WHOLE


class Pps(NamedTuple):
    """S ids of every token, ascending and without duplicates; fewer, at the front, where fewer ids have mass.

    Attributes:
      id_BLS: int32; NO_ID in entries that hold nothing.
      weight_BLS: max(p, threshold), fp32; 0 in entries that hold nothing. E[weight] = p, and their sum is 1.
      lse_BL: the log-normaliser of the logits, fp32.
    """

    id_BLS: Array
    weight_BLS: Array
    lse_BL: Array


class Split(NamedTuple):
    """The largest S masses, and which of their ids are certain. Masses are int32.

    Attributes:
      threshold_BL: the largest mass that is left to chance.
      is_certain_BLS: larger ones.
      total_BL: all mass.
      rest_BL: the mass that is not certain.
      entries_BL: the entries that are left for it, from 1 to S.
    """

    threshold_BL: Array
    is_certain_BLS: Array
    total_BL: Array
    rest_BL: Array
    entries_BL: Array


def pps(head: Head, size: int, key: Array, index_BL: Array) -> Pps:
    """`size` ids a token, with the cumulative distribution over the whole vocabulary."""
    z_BLV = head.logits()
    lse_BL = WHOLE.lse(z_BLV)
    mass_BLV = masses(z_BLV, lse_BL[..., None], 1.0)
    mass_BLS, id_BLS = jax.lax.top_k(mass_BLV, size)
    parts = split(mass_BLS, jnp.sum(mass_BLV, axis=-1))
    cumulative_BLV = jnp.cumsum(uncertain(mass_BLV, parts), axis=-1)
    drawn_BLS = invert(cumulative_BLV, points(key, index_BL, parts))
    return joined(id_BLS, mass_BLS, drawn_BLS, parts, lse_BL)


def split(mass_BLS: Array, total_BL: Array) -> Split:
    """What is certain, from the S largest masses and the total.

    With the s largest certain, the others have R_s / (S - s) each to spend. That falls with s as long as the next mass
    exceeds it, and does not fall afterwards: the threshold is its least value.
    """
    S = mass_BLS.shape[-1]
    sorted_BLS = -jnp.sort(-mass_BLS, axis=-1)
    others_BLS = total_BL[..., None] - (jnp.cumsum(sorted_BLS, axis=-1) - sorted_BLS)
    threshold_BL = jnp.min(others_BLS // (S - jnp.arange(S)), axis=-1)
    is_certain_BLS = mass_BLS > threshold_BL[..., None]
    rest_BL = total_BL - jnp.sum(jnp.where(is_certain_BLS, mass_BLS, 0), axis=-1)
    return Split(threshold_BL, is_certain_BLS, total_BL, rest_BL, S - jnp.sum(is_certain_BLS, axis=-1))


def uncertain(mass_BLV: Array, parts: Split) -> Array:
    """The masses without those that are certain."""
    return jnp.where(mass_BLV > parts.threshold_BL[..., None], 0, mass_BLV)


def points(key: Array, index_BL: Array, parts: Split) -> Array:
    """Where each entry looks up the cumulative uncertain masses, int32 [B, L, S] in [0, rest).

    Those that are not certain step from one offset, which depends on the key and the token's index alone; no mass is
    longer than a step, so that none is met twice.
    """
    offset = lambda index, rest: below(rest, jax.random.fold_in(key, index), ())  # noqa: E731
    offset_BL = jax.vmap(jax.vmap(offset))(index_BL, parts.rest_BL)
    nth_BLS = jnp.maximum(jnp.cumsum(~parts.is_certain_BLS, axis=-1) - 1, 0)
    return step(nth_BLS, *(x[..., None] for x in (offset_BL, parts.rest_BL, parts.entries_BL)))


def joined(id_BLS: Array, mass_BLS: Array, drawn_BLS: Array, parts: Split, lse_BL: Array) -> Pps:
    """The certain ids of the S largest, and what was drawn in place of the others; weights are parts of the total."""
    has_rest_BLS = jnp.broadcast_to(parts.rest_BL[..., None] > 0, id_BLS.shape)
    id_BLS = jnp.where(parts.is_certain_BLS, id_BLS, jnp.where(has_rest_BLS, drawn_BLS, NO_ID))
    each_BLS = (parts.rest_BL / parts.entries_BL)[..., None]
    weight_BLS = jnp.where(parts.is_certain_BLS, mass_BLS, each_BLS) / parts.total_BL[..., None]
    weight_BLS = jnp.where(jnp.isfinite(lse_BL)[..., None], weight_BLS, jnp.nan)
    return Pps(*jax.lax.sort((id_BLS, weight_BLS), num_keys=1), lse_BL)
