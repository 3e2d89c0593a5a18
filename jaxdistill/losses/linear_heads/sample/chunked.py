"""The same draws with logits for one chunk of positions at a time, and without a cumulative sum over the vocabulary.

The masses of bins of consecutive ids are summed; a point is looked up among the bins, and then within its bin, whose
masses are computed again: cheaper than keeping all of them. Since masses are integers, this gives the ids of the
definition, and so do any chunks, shards or order of the batch, wherever they give the same logits.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.head import MASKED, Head
from jaxdistill.losses.linear_heads.bins import best_width, binned, look_into, map_chunks
from jaxdistill.losses.linear_heads.sample import reference
from jaxdistill.losses.linear_heads.sample.reference import Sample
from jaxdistill.losses.linear_heads.sharding import LOCAL, Sharding
from jaxdistill.losses.targets import NO_ID
from jaxdistill.losses.vocabulary import Vocabulary


def sample(
    head: Head,
    rounds: int,
    key: Array,
    index_BL: Array,
    sampler: str,
    exponent: float,
    *,
    positions: int | None = None,
    sharding: Sharding = LOCAL,
) -> Sample:
    """As `reference.sample`; the logits are those of `positions` positions of every sequence at a time."""

    def on_device(sharding, vocabulary, head, inputs):
        on_chunk = functools.partial(_sample_of_chunk, rounds, sampler, exponent, vocabulary)
        return map_chunks(on_chunk, head, inputs, positions=positions)

    return sharding.run(on_device, head, {"key": key, "index_BL": index_BL})


def _sample_of_chunk(
    rounds: int, sampler: str, exponent: float, vocabulary: Vocabulary, head: Head, inputs: dict[str, Array]
) -> Sample:
    z_BLV = head.logits(vocabulary.first)
    lse_BL, lse_q_BL = reference.normalisers(z_BLV, exponent, vocabulary)
    mass = functools.partial(reference.masses, lse_q=lse_q_BL[..., None, None], exponent=exponent)
    bins = binned(z_BLV, best_width(z_BLV.shape[-1], rounds), MASKED)
    # The barrier keeps XLA from forming all masses a second time for their total.
    mass_of_bin = jax.lax.optimization_barrier(jnp.sum(mass(bins), axis=-1))
    before_BL, total_BL = mass_of_shards(jnp.sum(mass_of_bin, axis=-1), vocabulary)
    point_BLS = reference.points(inputs["key"], inputs["index_BL"], total_BL, rounds, sampler) - before_BL[..., None]
    drawn_BLS = join_shards(invert(bins, mass_of_bin, mass, point_BLS), point_BLS, mass_of_bin, vocabulary)
    return reference.weighted(drawn_BLS, z_BLV, lse_BL, lse_q_BL, exponent, vocabulary)


def invert(bins: Array, mass_of_bin: Array, mass: Callable[[Array], Array], point_BLS: Array) -> Array:
    """As `reference.invert`, for logits in bins: the bin of each point, then the column in it, int32 [B, L, S]."""
    cumulative = jnp.cumsum(mass_of_bin, axis=-1)
    bin_BLS = reference.invert(cumulative, point_BLS)
    point_BLS = point_BLS - jnp.take_along_axis(cumulative - mass_of_bin, bin_BLS, axis=-1)
    within = jnp.cumsum(mass(look_into(bins, bin_BLS)), axis=-1)
    # A compiler may round exp in two ways at two places: then the last id with mass stands for what lies beyond it.
    point_BLS = jnp.minimum(point_BLS, within[..., -1] - 1)
    return bin_BLS * bins.shape[-1] + jnp.sum(within <= point_BLS[..., None], axis=-1)


def mass_of_shards(mass_BL: Array, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """(the mass of the shards before this one, the mass of all)."""
    if vocabulary.axis is None:
        return jnp.zeros_like(mass_BL), mass_BL
    masses = jax.lax.all_gather(mass_BL, vocabulary.axis)
    earlier = jnp.arange(len(masses)) < jax.lax.axis_index(vocabulary.axis)
    return jnp.sum(jnp.where(earlier[:, None, None], masses, 0), axis=0), jnp.sum(masses, axis=0)


def join_shards(column_BLS: Array, point_BLS: Array, mass_of_bin: Array, vocabulary: Vocabulary) -> Array:
    """Ids from the columns that this shard found: a point outside its own mass is another shard's to look up."""
    if vocabulary.axis is None:
        return column_BLS
    here_BLS = (point_BLS >= 0) & (point_BLS < jnp.sum(mass_of_bin, axis=-1, keepdims=True))
    return jax.lax.pmin(jnp.where(here_BLS, vocabulary.first + column_BLS, NO_ID), vocabulary.axis)
