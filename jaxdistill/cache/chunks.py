"""Chunks in a cache: which of a window's tokens are one, and what a teacher of another tokenizer says of it.

A window takes two columns. `step` has a small number for each token: 0 where it is in no chunk, else one more than how
many chunks further it is than the token before. `level` has one for each chunk: 0 where the chunk does not count, else
one more than its surprise on a grid of nats. The teacher's own tokens are not kept: nothing asks for them again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.align import NO_CHUNK
from jaxdistill.cache.columns import Column
from jaxdistill.losses.targets import Chunked

TOP_LEVEL = 2**16 - 1
BEYOND = 2**30  # the level of what has none


@dataclasses.dataclass(frozen=True)
class ChunkLevels:
    """Chunk targets (`losses.targets.Chunked`).

    A log-probability above 0, which a correction can leave, is kept as 0: as that a divergence reads it.

    Attributes:
      length: of a window.
      resolution: distance of two levels, in nats; what is read is off by at most half of it.
      debias: how the log-probabilities are corrected.
    """

    length: int
    resolution: float
    debias: Literal["none", "outcome", "both"]

    extra, scalars = (), ()

    @property
    def columns(self) -> dict[str, Column]:
        return {"step": Column("uint8", self.length), "level": Column("uint16", self.length)}

    def pack(self, target: Chunked, uniform_BL: Any = None) -> dict[str, Array]:
        """On the device: step_BL and level_BL, int32. A chunk that has no level gets one above TOP_LEVEL."""
        chunk_BL = jnp.asarray(target.chunk_BL)
        before_BL = jnp.pad(jax.lax.cummax(chunk_BL, axis=1)[:, :-1], ((0, 0), (1, 0)), constant_values=NO_CHUNK)
        surprise_BC = -jnp.minimum(jnp.asarray(target.logp_BC), 0) / self.resolution
        level_BC = 1 + jnp.round(jnp.where(surprise_BC < BEYOND, surprise_BC, BEYOND)).astype(jnp.int32)
        level_BC = jnp.where(target.is_real_BC, level_BC, 0)
        return {
            "step_BL": jnp.where(chunk_BL == NO_CHUNK, 0, 1 + chunk_BL - before_BL),
            "level_BL": jnp.pad(level_BC, ((0, 0), (0, self.length - level_BC.shape[1]))),
        }

    def target(self, rows: Mapping[str, np.ndarray], label_BL: Any, entries: int | None = None) -> Chunked:
        """From the columns of B rows, on the host; C is the length of the window."""
        step_BL, level_BC = rows["step"].astype(np.int32), rows["level"]
        chunk_BL = np.cumsum(np.maximum(step_BL - 1, 0), axis=1, dtype=np.int32) + np.int32(NO_CHUNK)
        logp_BC = np.minimum(1 - level_BC.astype(np.float32), 0) * np.float32(self.resolution)
        return Chunked(logp_BC, level_BC > 0, np.where(step_BL > 0, chunk_BL, NO_CHUNK), self.debias)


def agreement(a: Chunked, b: Chunked, nats: float = 0.05) -> float:
    """The share of tokens whose chunks begin alike, count alike and are worth the same, up to some nats."""
    first, second = (_of_tokens(target) for target in (a, b))
    return float(np.mean((first[:2] == second[:2]).all(0) & (np.abs(first[2] - second[2]) <= nats)))


def _of_tokens(target: Chunked) -> np.ndarray:
    """Of every token: whether it begins a chunk or is in none, whether its chunk counts, and the chunk's value."""
    chunk_BL = np.asarray(target.chunk_BL)
    place_BL, begins_BL = np.maximum(chunk_BL, 0), np.diff(chunk_BL, axis=1, prepend=NO_CHUNK) != 0
    counts_BL = np.take_along_axis(np.asarray(target.is_real_BC), place_BL, 1) & (chunk_BL != NO_CHUNK)
    logp_BL = np.take_along_axis(np.asarray(target.logp_BC), place_BL, 1)
    return np.stack([begins_BL, counts_BL, np.where(counts_BL, logp_BL, 0)])
