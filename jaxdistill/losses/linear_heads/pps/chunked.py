"""The same ids with logits for one chunk of positions at a time, and without sorting or summing up the vocabulary.

The S largest logits tell what is certain (see `top_k.chunked`), and the rest is looked up in bins (see
`sample.chunked`). Masses are integers, so chunks, shards and the order of the batch change nothing, wherever they give
the same logits.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.bins import best_width, binned, map_chunks
from jaxdistill.losses.linear_heads.pps import reference
from jaxdistill.losses.linear_heads.pps.reference import Pps
from jaxdistill.losses.linear_heads.sample.chunked import invert, join_shards, mass_of_shards
from jaxdistill.losses.linear_heads.sample.reference import masses
from jaxdistill.losses.linear_heads.sharding import LOCAL, Sharding
from jaxdistill.losses.linear_heads.top_k.chunked import largest_of_shards
from jaxdistill.losses.vocabulary import Vocabulary


def pps(
    head: Head, size: int, key: Array, index_BL: Array, *, positions: int | None = None, sharding: Sharding = LOCAL
) -> Pps:
    """As `reference.pps`; the logits are those of `positions` positions of every sequence at a time."""

    def on_device(sharding, vocabulary, head, inputs):
        return map_chunks(functools.partial(_pps_of_chunk, size, vocabulary), head, inputs, positions=positions)

    return sharding.run(on_device, head, {"key": key, "index_BL": index_BL})


def _pps_of_chunk(size: int, vocabulary: Vocabulary, head: Head, inputs: dict[str, Array]) -> Pps:
    z_BLV = head.logits(vocabulary.first)
    lse_BL = vocabulary.lse(z_BLV)
    # Whoever looks at a mass must see the same integer, and a compiler may round exp in two ways at two places.
    mass_BLV = jax.lax.optimization_barrier(masses(z_BLV, lse_BL[..., None], 1.0))
    _, id_BLS = largest_of_shards(z_BLV, size, vocabulary)
    mass_BLS = vocabulary.pick(mass_BLV, id_BLS)
    parts = reference.split(mass_BLS, vocabulary.sum(mass_BLV))
    point_BLS = reference.points(inputs["key"], inputs["index_BL"], parts)
    drawn_BLS = _drawn(reference.uncertain(mass_BLV, parts), point_BLS, vocabulary)
    return reference.joined(id_BLS, mass_BLS, drawn_BLS, parts, lse_BL)


def _drawn(mass_BLV: Array, point_BLS: Array, vocabulary: Vocabulary) -> Array:
    """The id at each point of the cumulative masses of all shards."""
    bins = binned(mass_BLV, best_width(mass_BLV.shape[-1], point_BLS.shape[-1]), 0)
    mass_of_bin = jax.lax.optimization_barrier(jnp.sum(bins, axis=-1))
    before_BL, _ = mass_of_shards(jnp.sum(mass_of_bin, axis=-1), vocabulary)
    point_BLS = point_BLS - before_BL[..., None]
    return join_shards(invert(bins, mass_of_bin, lambda x: x, point_BLS), point_BLS, mass_of_bin, vocabulary)
