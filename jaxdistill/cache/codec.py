"""Targets as rows of small integers, and back.

Tokens hold different numbers of entries. A row, the targets of one window, has their entries one after another at the
front of its columns and zeros behind, which cost nothing once compressed; `number` says how many belong to each token.
Ids ascend where their order says nothing and values fall where it does, so differences between neighbours are small,
and small integers lose their empty bytes and bits to the compressor of `store`. Nothing is limited but int32.

    Counts       random draws with replacement: how often each id came. Exact.
    Levels       ids in the order of their value, and values on a grid of logarithms. A probability is rounded to the
                 nearest level; a random weight goes to either neighbour with the odds that keep its expectation.
    Hidden       no ids, but the last hidden states in eight bits; an output layer makes all of them (`states`).
    ChunkLevels  no ids either, but which tokens are a chunk, and what a chunk is worth (`chunks`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.across import Chunking
from jaxdistill.cache import states
from jaxdistill.cache.chunks import TOP_LEVEL, ChunkLevels
from jaxdistill.cache.columns import Column, Ragged, differences, unsigned
from jaxdistill.cache.samplers import Draws, Top, TopP
from jaxdistill.head import MASKED
from jaxdistill.losses.targets import NO_ID, Sampled, TopK

LARGEST = 16.0  # log of the largest weight that has a level
SCALARS = ("teacher_cross_entropy", "teacher_entropy", "teacher_lse")
"""What is kept of every token beside its entries, in nats: -log p(label), -sum p log p, and the logits' normaliser."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """Sampled targets whose weights are count / rounds.

    Attributes:
      vocab_size, length: of the tokens and of a window.
      rounds: draws a token.
    """

    vocab_size: int
    length: int
    rounds: int

    extra, scalars = (), SCALARS

    @property
    def columns(self) -> dict[str, Column]:
        capacity = self.length * self.rounds
        return {
            "number": Column(unsigned(self.rounds), self.length),
            "id": Column(unsigned(self.vocab_size), capacity),
            "count": Column(unsigned(self.rounds), capacity),
        }

    def pack(self, target: Any, uniform_BL: Any) -> dict[str, Array]:
        """Of a Sampled target, on the device: number_BL, and differences of ids and the counts as [B, L, S], int32."""
        count_BLS = jnp.round(target.weight_BLS * self.rounds).astype(jnp.int32)
        number_BL = jnp.sum(count_BLS > 0, axis=-1)
        return {"number_BL": number_BL, "id_BLS": differences(target.id_BLS), "count_BLS": count_BLS}

    def target(self, rows: Mapping[str, np.ndarray], label_BL: Any, entries: int | None = None) -> Sampled:
        """From the columns of B rows, on the host, with `entries` a token, or as many as these rows need."""
        ragged = Ragged(rows["number"], rows["id"].shape[-1], entries)
        id_BLS = ragged.spread(ragged.sums(ragged.take(rows["id"])), NO_ID, np.int32)
        weight = np.multiply(ragged.take(rows["count"]), np.float32(1 / self.rounds), dtype=np.float32)
        return Sampled(label_BL, id_BLS, ragged.spread(weight, 0, np.float32))


@dataclasses.dataclass(frozen=True)
class Levels:
    """Targets with a value an entry: TopK by log-probability, or Sampled by weight.

    Attributes:
      vocab_size, length: of the tokens and of a window.
      entries: the most a token holds.
      resolution: distance of two levels, in nats. The KL of rounding to it is about resolution^2 / 24.
      sampled: whether the target is Sampled.
    """

    vocab_size: int
    length: int
    entries: int
    resolution: float
    sampled: bool

    scalars = SCALARS

    @property
    def extra(self) -> tuple[str, ...]:
        """Further numbers of a token."""
        return () if self.sampled else ("logtail",)

    @property
    def columns(self) -> dict[str, Column]:
        capacity = self.length * self.entries
        return {
            "number": Column(unsigned(self.entries), self.length),
            "id": Column(unsigned(self.vocab_size), capacity),
            "level": Column("uint16", capacity),
        }

    def pack(self, target: Any, uniform_BL: Any) -> dict[str, Array]:
        """On the device: number_BL, the ids and the differences of their levels as [B, L, S], int32.

        `uniform_BL`, in [0, 1), decides which way weights are rounded. A token with a weight above exp(LARGEST) gets
        the number 0, which no token may have.
        """
        if isinstance(target, TopK):
            level_BLS = jnp.round(-target.logp_BLS / self.resolution).astype(jnp.int32)
            id_BLS, held_BLS = target.id_BLS, target.id_BLS != NO_ID
        else:
            order_BLS = jnp.argsort(-target.weight_BLS, axis=-1, stable=True)
            id_BLS, weight_BLS = (
                jnp.take_along_axis(x, order_BLS, axis=-1) for x in (target.id_BLS, target.weight_BLS)
            )
            fits_BL = jnp.all(weight_BLS <= math.exp(LARGEST), axis=-1)
            held_BLS = (weight_BLS > 0) & fits_BL[..., None]
            level_BLS = random_levels(jnp.where(held_BLS, weight_BLS, 1), uniform_BL[..., None], self.resolution)
        level_BLS = jnp.clip(level_BLS, 0, TOP_LEVEL)
        return {
            "number_BL": jnp.sum(held_BLS, axis=-1),
            "id_BLS": jnp.where(held_BLS, id_BLS, 0),
            "level_BLS": differences(level_BLS),
        }

    def target(self, rows: Mapping[str, np.ndarray], label_BL: Any, entries: int | None = None) -> TopK | Sampled:
        """From the columns of B rows, on the host, with `entries` a token, or as many as these rows need."""
        ragged = Ragged(rows["number"], rows["id"].shape[-1], entries)
        id_BLS = ragged.spread(ragged.take(rows["id"]), NO_ID, np.int32)
        logarithm = ragged.sums(ragged.take(rows["level"])) * np.float32(-self.resolution)
        if self.sampled:
            return Sampled(label_BL, id_BLS, ragged.spread(np.exp(logarithm + np.float32(LARGEST)), 0, np.float32))
        return with_tail(label_BL, id_BLS, ragged.spread(logarithm, -np.inf, np.float32), rows["logtail"])


def random_levels(weight: Array, uniform: Array, resolution: float) -> Array:
    """One of the two levels next to each weight, int32: exp(LARGEST - resolution level) is it in expectation."""
    place = (LARGEST - jnp.log(weight)) / resolution
    upper = jnp.floor(place)  # of the two values the larger
    # with x = place - upper in [0, 1): the weight is e^{-rx} of the larger value and the smaller one e^{-r} of it
    chance = -jnp.expm1((1 - (place - upper)) * resolution) / jnp.expm1(-resolution)
    chance = chance * jnp.exp(-resolution)
    return (upper + (uniform >= chance)).astype(jnp.int32)


def with_tail(label_BL: Any, id_BLS: Any, logp_BLS: Any, logtail_BL: np.ndarray) -> TopK:
    """A TopK target whose kept mass is what the stored tail leaves: rounding to levels moved their sum a little."""
    tail_BL = np.exp(logtail_BL.astype(np.float32))
    kept_BL = np.exp(logp_BLS).sum(axis=-1)
    logp_BLS = np.maximum(logp_BLS + (np.log1p(-tail_BL) - np.log(kept_BL))[..., None], np.float32(MASKED))
    stored: Any = np.where(tail_BL > 0, logtail_BL.astype(np.float32), np.float32(MASKED))
    return TopK(label_BL, id_BLS, logp_BLS, stored)


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Last hidden states, for the whole distribution.

    Attributes:
      vocab_size, length: of the tokens and of a window.
      width: of the teacher.
    """

    vocab_size: int
    length: int
    width: int

    extra, scalars = (), SCALARS

    @property
    def columns(self) -> dict[str, Column]:
        return {"state": Column("int8", self.length * self.width), "scale": Column("float32", self.length)}

    def pack(self, target: Any, uniform_BL: Any) -> dict[str, Array]:
        """Of a Dense target, on the device: state_BLC and scale_BL."""
        return states.quantise(target.head.h_BLD)

    def target(self, rows: Mapping[str, np.ndarray], label_BL: Any, entries: int | None = None) -> states.States:
        """From the columns of B rows, on the host."""
        return states.states(rows, label_BL, self.width)


Layout = Counts | Levels | Hidden | ChunkLevels
KINDS = {"counts": Counts, "levels": Levels, "hidden": Hidden, "chunks": ChunkLevels}


def layout(keep: Any, vocab_size: int, length: int, resolution: float) -> Layout:
    """How the targets of a sampler are stored."""
    if isinstance(keep, Chunking):
        return ChunkLevels(length, resolution, keep.debias)
    if isinstance(keep, states.LastStates):
        return Hidden(vocab_size, length, keep.width)
    if isinstance(keep, Draws) and keep.exponent == 1:
        return Counts(vocab_size, length, keep.rounds)
    return Levels(vocab_size, length, keep.size, resolution, sampled=not isinstance(keep, (Top, TopP)))


def describe(layout: Layout) -> dict[str, Any]:
    """A layout as plain values, for the manifest; `layout_of` reads them."""
    kind = next(kind for kind, cls in KINDS.items() if isinstance(layout, cls))
    return {"kind": kind, **dataclasses.asdict(layout)}


def layout_of(described: Mapping[str, Any]) -> Layout:
    """The layout that a manifest describes."""
    fields = dict(described)
    return KINDS[fields.pop("kind")](**fields)
