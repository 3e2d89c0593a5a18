"""Tied layers with low-rank differences: K layers that are run several times, each time with its own small correction.

Relaxed recursive transformers (Bae et al., arXiv 2410.20672): layer l of N is shared layer l mod K, plus a matrix of
rank r of its own, which begins as the best such approximation of what the sharing took away. `materialise` gives the N
layers as a Transformer runs them; it can be differentiated, so that training through it trains shared layers and
corrections. It needs the memory of all N layers while it runs.

The shared layers may come from anywhere: `merge.average(config, params, loops(N, K))`, the first K of
`truncate(config, params, range(K))`, or K over the whole depth, `truncate(config, params, patterns.max_gap(N, K))`.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.surgery.arrays import operate
from jaxdistill.models.surgery.truncate import check_stacked
from jaxdistill.models.transformer import Config, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Relaxed:
    """Shared layers and corrections. Each array below `layers` has its own, an array [..., a, b] read as matrices.

    Attributes:
      shared: parameters of a model with K layers, embeddings and head among them.
      left: of every array below `layers`, [N, ..., a, r]; r is smaller where the array allows no more.
      right: likewise, [N, ..., r, b].
    """

    shared: Params
    left: Any
    right: Any


def loops(num_layers: int, shared: int) -> tuple[range, ...]:
    """For each of the shared layers, the layers that it stands for: every `shared`-th. InputError for uneven loops."""
    if not 1 <= shared <= num_layers or num_layers % shared:
        raise InputError(f"{num_layers} layers are no whole number of loops over {shared}: take one of its divisors")
    return tuple(range(k, num_layers, shared) for k in range(shared))


def relax(config: Config, params: Params, shared: Params, rank: int) -> Relaxed:
    """The corrections of rank `rank` with which the shared layers are nearest to the layers of `params`.

    A matrix of the stream's width and something else is corrected as such, one of each expert by itself; gains and
    biases are matrices of one row, so that any rank above 0 restores them. Rank 0 is the plain recursion, and the
    smallest side of a matrix restores it up to rounding.

    Args:
      config, params: the model of N layers.
      shared: parameters with K layers, where N is a multiple of K; the result keeps a copy.
      rank: of the corrections.
    """
    if rank < 0:
        raise InputError(f"a correction of rank {rank} is asked for: ask for 0 or more")
    check_stacked(params, config.num_layers)
    number = len(loops(config.num_layers, jax.tree.leaves(shared[dims.STACKED])[0].shape[0]))
    check_stacked(shared, number)
    loop = np.arange(config.num_layers) % number

    def factors(xp, params, shared):
        def svd(path, full, tied):
            rest = _matrices(dims.letters(dims.key_name(path[-1])), full - xp.take(tied, loop, axis=0, mode="clip"))
            u, s, v = xp.linalg.svd(rest, full_matrices=False)
            return (u * s[..., None, :])[..., :rank], v[..., :rank, :]

        both = jax.tree_util.tree_map_with_path(svd, params[dims.STACKED], shared[dims.STACKED])
        left, right = jax.tree.transpose(jax.tree.structure(shared[dims.STACKED]), jax.tree.structure((0, 0)), both)
        return Relaxed(jax.tree.map(xp.copy, shared), left, right)

    return operate(factors, params, shared)


def materialise(relaxed: Relaxed) -> Params:
    """The parameters of the N layers: each shared one, as often as it is run, plus its corrections."""

    def add(xp, relaxed):
        def layers(tied, left, right):
            loop = np.arange(left.shape[0]) % tied.shape[0]
            corrections = (left @ right).reshape(left.shape[0], *tied.shape[1:])
            return xp.take(tied, loop, axis=0, mode="clip") + corrections

        stacked = jax.tree.map(layers, relaxed.shared[dims.STACKED], relaxed.left, relaxed.right)
        return jax.tree.map(xp.copy, relaxed.shared) | {dims.STACKED: stacked}

    return operate(add, relaxed)


def num_params(relaxed: Relaxed) -> int:
    """Numbers to store, embeddings among them."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(relaxed))


def _matrices(own: str, x: Any) -> Any:
    """[N, ...] as matrices [N, a, b], or [N, E, a, b]: the stream's width on one side, everything else on the other."""
    lead, inner = (2, own[1:]) if own.startswith("E") and len(own) > 1 else (1, own)
    at = inner.find("D")
    rows = 0 if at < 0 or len(inner) == 1 else 1 if at == 0 else len(inner) - 1
    a = math.prod(x.shape[lead : lead + rows])
    return x.reshape(*x.shape[:lead], a, -1)
