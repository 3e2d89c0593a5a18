"""The global minimum of a smooth function over a small box, for many problems at once.

A grid finds the basin, since the losses have more than one minimum here (arXiv 2502.08606v2 solves from one start); a
pattern search goes down in it: it moves to the best of its neighbours and doubles its step, or halves it where none is
better.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

Loss = Callable[[np.ndarray], np.ndarray]
Box = Sequence[tuple[float, float] | np.ndarray]

CHUNK = 512  # grid points at a time: few enough for thousands of problems in memory
TOLERANCE = 1e-6  # of a coordinate; the loss at a smooth minimum is then exact to 1e-12
MOVES = 1000  # the losses here take some 50 to 150
GAIN = 1e-13  # of the loss; smaller gains are rounding, along which a search could creep for ever


def grid(loss: Loss, box: Box, spacing: float) -> np.ndarray:
    """The best point of a grid over a box for each problem, [K, X].

    Args:
      loss: float64 [1 or K, G, X] -> [K, G], K problems at G points each; infinite where a point is not allowed.
      box: (low, high) of each coordinate; equal ends hold it.
      spacing: of the grid; basins narrower than this can be missed.
    """
    axes = [np.linspace(low, high, 1 + int(np.ceil((high - low) / spacing))) for low, high in box]
    points_GX = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(box))
    x_KX, value_K = points_GX[:1], np.array([np.inf])
    for part_GX in np.array_split(points_GX, -(-len(points_GX) // CHUNK)):
        value_KG = loss(part_GX[None])
        best_K = value_KG.argmin(axis=1)
        lowest_K = np.take_along_axis(value_KG, best_K[:, None], axis=1)[:, 0]
        x_KX = np.where((lowest_K < value_K)[:, None], part_GX[best_K], x_KX)
        value_K = np.minimum(lowest_K, value_K)
    return x_KX


def descend(loss: Loss, start_KX: np.ndarray, box: Box, step: float) -> np.ndarray:
    """The minimum below each start, [K, X]; arguments as in `grid`, whose spacing is a good first `step`."""
    low_X, high_X = (np.array([ends[side] for ends in box]) for side in (0, 1))
    moves = ((-step, 0.0, step) if low < high else (0.0,) for low, high in box)
    moves_GX = np.array(list(itertools.product(*moves)))
    x_KX, value_K, scale_K = start_KX, loss(start_KX[:, None])[:, 0], np.ones(len(start_KX))
    for _ in range(MOVES):
        if np.all(scale_K * step <= TOLERANCE):
            break
        near_KGX = np.clip(x_KX[:, None] + scale_K[:, None, None] * moves_GX, low_X, high_X)
        value_KG = loss(near_KGX)
        best_K = value_KG.argmin(axis=1)
        lowest_K = np.take_along_axis(value_KG, best_K[:, None], axis=1)[:, 0]
        better_K = lowest_K + GAIN * np.abs(lowest_K) < value_K
        x_KX = np.where(better_K[:, None], near_KGX[np.arange(len(best_K)), best_K], x_KX)
        value_K = np.where(better_K, lowest_K, value_K)
        scale_K = np.where(better_K, np.minimum(2 * scale_K, 1), scale_K / 2)
    return x_KX
