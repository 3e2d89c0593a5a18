"""Reading a cache: targets found by the content of a window, wherever and in whatever batch it turns up."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdistill.cache.chunks import ChunkLevels
from jaxdistill.cache.codec import Hidden, Layout, Levels, layout_of
from jaxdistill.cache.columns import Column
from jaxdistill.cache.states import States
from jaxdistill.cache.store import Store
from jaxdistill.data import Batch
from jaxdistill.errors import InputError
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.sampled import SampledCrossEntropy
from jaxdistill.losses.targets import Chunked, Sampled, TopK
from jaxdistill.losses.top_k import TopKDivergence

VERSION = 1


def content_keys(batch: Batch) -> np.ndarray:
    """128 bits of every row that depend on all that a teacher sees of it, uint64 [B, 2].

    One with another tokenizer may cut the text of equal rows otherwise, as what stands around them decides: any of
    these is a target for all of them.
    """
    rows = zip(np.asarray(batch.tokens_BL, "<i4"), np.asarray(batch.segment_BL, "<i4"), strict=True)
    digests = [
        hashlib.blake2b(tokens.tobytes() + segment.tobytes(), digest_size=16).digest() for tokens, segment in rows
    ]
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def distance(known: Literal["whole", "ranked", "sampled"] | None) -> Objective:
    """What an evaluation measures: cross-entropy, and as much of KL(teacher || student) as targets of a kind can tell.

    Of draws `sampled_cross_entropy`, whose excess over the teacher's entropy is the KL in expectation; of top-K
    targets `top_k_kl`, the KL of K + 1 outcomes, which is below that of all.
    """
    terms = {
        "whole": {"forward_kl": Term(ForwardKL())},
        "ranked": {"top_k_kl": Term(TopKDivergence())},
        "sampled": {"sampled_cross_entropy": Term(SampledCrossEntropy())},
    }
    return Objective.of({"cross_entropy": Term(CrossEntropy())} | (terms[known] if known else {}))


def columns_of(layout: Layout, scalars: Sequence[str] | None = None) -> dict[str, Column]:
    """The columns of a cache: those of its layout, what is kept of every token beside them, and the windows' keys.

    `scalars` are by default all that the layout has.
    """
    scalars = layout.scalars if scalars is None else scalars
    of_token = {name: Column("float16", layout.length) for name in (*scalars, *layout.extra)}
    return {**layout.columns, **of_token, "key": Column("uint64", 2)}


@dataclasses.dataclass(frozen=True, eq=False)
class Cache:
    """A finished cache.

    Attributes:
      directory: where it lies.
      manifest: what it says of itself.
      first: how many of each token's entries to use, of a cache of top-K targets; None for all.
    """

    directory: Path
    manifest: Mapping[str, Any]
    first: int | None = None

    @classmethod
    def open(cls, directory: Path, manifest: Mapping[str, Any], first: int | None = None) -> "Cache":
        """A cache whose files are all there and of the right size; InputError naming what is not."""
        if (version := manifest.get("cache_version")) != VERSION:
            raise InputError(f"{directory} has cache format {version}, and {VERSION} is read here: build it again")
        cache = cls(Path(directory), manifest, first)
        if first is not None and not 1 <= first <= cache.entries:
            raise InputError(f"{directory} has {cache.entries} entries a token by rank: first cannot be {first}")
        cache.store.check()
        return cache

    @functools.cached_property
    def layout(self) -> Layout:
        return layout_of(self.manifest["layout"])

    @property
    def scalars(self) -> tuple[str, ...]:
        """Which of `codec.SCALARS` it holds: none, if it was made of another system's cache, which does not tell them,
        or of a teacher with another tokenizer.
        """
        return tuple(self.manifest.get("scalars", self.layout.scalars))

    @functools.cached_property
    def store(self) -> Store:
        return Store(
            self.directory, columns_of(self.layout, self.scalars), self.manifest["rows"], self.manifest["shard_rows"]
        )

    @functools.cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first halves of the keys, ascending; second halves; rows)."""
        key = self.store.read(np.arange(self.store.rows), ["key"])["key"]
        order = np.lexsort((key[:, 1], key[:, 0]))
        return key[order, 0], key[order, 1], order

    @property
    def entries(self) -> int:
        """How many entries a token has by rank: K of a top-K cache, and 0 of one of draws, which have no rank."""
        return self.layout.entries if isinstance(self.layout, Levels) and not self.layout.sampled else 0

    @property
    def needs_head(self) -> bool:
        """Whether its targets are hidden states, which the teacher's output layer makes a distribution of."""
        return isinstance(self.layout, Hidden)

    @property
    def holds_chunks(self) -> bool:
        """Whether its targets are what a teacher with another tokenizer says of chunks."""
        return isinstance(self.layout, ChunkLevels)

    @property
    def holds_validation(self) -> bool:
        """Whether it has the windows that are validated on."""
        return self.manifest["windows"]["validation"] > 0

    @property
    def validation(self) -> Objective:
        """What an evaluation measures with it, as `distance` has it."""
        if not self.holds_validation:
            return distance(None)
        if isinstance(self.layout, Hidden):
            return distance("whole")
        return distance("ranked" if self.entries else "sampled")

    def find(self, key_B2: np.ndarray) -> np.ndarray:
        """The row of every key, int [B]; -1 where there is none."""
        high, low, rows = self._index
        place = np.minimum(np.searchsorted(high, key_B2[:, 0]), len(high) - 1)
        # Two windows that share 64 bits of 128 are neighbours here; nobody will ever see three.
        next_place = np.minimum(place + 1, len(high) - 1)
        place = np.where(low[place] == key_B2[:, 1], place, next_place)
        found = (high[place] == key_B2[:, 0]) & (low[place] == key_B2[:, 1])
        return np.where(found, rows[place], -1)

    def attach(self, batch: Batch) -> Batch:
        """The batch with its targets, and with the teacher's numbers of every token among its signals.

        Raises InputError where the cache does not hold a window of the batch, or what it holds is damaged.
        """
        rows = self.find(content_keys(batch))
        is_padding = np.asarray(batch.segment_BL)[:, 0] == 0
        if missing := int(np.sum((rows < 0) & ~is_padding)):
            raise InputError(
                f"{self.directory} holds no targets for {missing} of {len(rows)} windows of a batch: it was built over "
                f"{self.manifest['about']}, so build one over the data, the length and the windows of this run"
            )
        read = self.store.read(np.maximum(rows, 0))
        target = self.target(read, np.asarray(batch.label_BL))
        signals = {f"{name}_BL": read[name].astype(np.float32) for name in self.scalars}
        return dataclasses.replace(batch, target=target, signals={**batch.signals, **signals})

    def target(self, rows: Mapping[str, np.ndarray], label_BL: Any) -> TopK | Sampled | States | Chunked:
        """The targets in the columns of some rows, cut to the first entries where that was asked."""
        # as wide for every batch, or each would be compiled anew
        target: Any = self.layout.target(rows, label_BL, self.manifest["entries"])
        if self.first is None or target.id_BLS.shape[-1] <= self.first:
            return target
        dropped_BL = np.exp(target.logp_BLS[..., self.first :]).sum(axis=-1)
        logtail_BL: Any = np.log(np.exp(target.logtail_BL) + dropped_BL)
        return TopK(target.label_BL, target.id_BLS[..., : self.first], target.logp_BLS[..., : self.first], logtail_BL)
