"""Exact top-K with logits for one chunk of positions at a time, and without sorting the vocabulary.

Cut the ids into bins of equal width. Every one of the K largest logits lies in one of the K bins with the largest
maxima: an element of any other bin is below K maxima. So two small selections take the place of one over all of V,
which costs a sort on a GPU.

Ties go to the smaller id, as `jax.lax.top_k` has it: bins hold consecutive ids, so of two bins with one maximum the
first is the right one, and the chosen bins are put back into the order of their ids before the second selection. Both
selections are stable: the faster unstable one of a GPU would make a cache depend on the machine, and of so few keys a
sort is cheap.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.bins import best_width, binned, look_into, map_chunks
from jaxdistill.losses.linear_heads.sharding import LOCAL, Sharding
from jaxdistill.losses.linear_heads.top_k.reference import Top
from jaxdistill.losses.vocabulary import Vocabulary


def top_k(head: Head, k: int, *, positions: int | None = None, sharding: Sharding = LOCAL) -> Top:
    """As `reference.top_k`; the logits are those of `positions` positions of every sequence at a time."""

    def on_device(sharding, vocabulary, head):
        return map_chunks(functools.partial(_top_of_chunk, k, vocabulary), head, positions=positions)

    return sharding.run(on_device, head)


def _top_of_chunk(k: int, vocabulary: Vocabulary, head: Head) -> Top:
    z_BLV = head.logits(vocabulary.first)
    lse_BL = vocabulary.lse(z_BLV)
    z_BLS, id_BLS = largest_of_shards(z_BLV, k, vocabulary)
    return Top(id_BLS, z_BLS - lse_BL[..., None], lse_BL)


def largest(z_BLV: Array, k: int) -> tuple[Array, Array]:
    """(values, columns) of the k largest, as `jax.lax.top_k` gives them, ties included."""
    columns = z_BLV.shape[-1]
    width = best_width(columns, k)
    if columns < 2 * k * width:  # half of all bins would be looked into
        return jax.lax.top_k(z_BLV, k)
    bins = binned(z_BLV, width, -jnp.inf)
    bin_BLS = jnp.sort(jax.lax.top_k(bins.max(axis=-1), k)[1])
    candidates = look_into(bins, bin_BLS).reshape(*bin_BLS.shape[:2], -1)
    z_BLS, place_BLS = jax.lax.top_k(candidates, k)
    return z_BLS, jnp.take_along_axis(bin_BLS, place_BLS // width, axis=-1) * width + place_BLS % width


def largest_of_shards(z_BLV: Array, k: int, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """(values, ids) of the k largest over the whole vocabulary.

    Shards lie in the order of their ids, so that of what they found ties still go to the smaller.
    """
    z_BLS, column_BLS = largest(z_BLV, min(k, z_BLV.shape[-1]))
    id_BLS = column_BLS + vocabulary.first
    if vocabulary.axis is None:
        return z_BLS, id_BLS
    z_all, id_all = (jax.lax.all_gather(x, vocabulary.axis, axis=-1, tiled=True) for x in (z_BLS, id_BLS))
    z_BLS, place_BLS = jax.lax.top_k(z_all, k)
    return z_BLS, jnp.take_along_axis(id_all, place_BLS, axis=-1)
