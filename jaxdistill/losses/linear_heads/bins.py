"""What a teacher's head is asked for, a chunk of positions at a time and in bins of consecutive ids; no gradients here.

Picking S ids out of V by sorting or summing all of them again is dear. One reduction of every bin of ids tells which S
bins matter, and only those are looked into: V / width + S width numbers in place of V.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill import device
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.stream import divide, join, pad, take


def map_chunks(on_chunk: Callable[..., Any], head: Head, *inputs: Any, positions: int | None) -> Any:
    """on_chunk(head, *inputs) for `positions` positions of every sequence at a time; its results are [B, L, ...].

    Arrays of the head and of `inputs` whose letters begin with BL are cut. `positions` None takes `default_positions`.
    """
    L = head.h_BLD.shape[1]
    num_chunks, size = divide(head, positions)
    head = dataclasses.replace(head, w_VD=head.w_VD.astype(head.h_BLD.dtype))  # once, not in every chunk
    whole = pad((head, *inputs), num_chunks * size - L)
    chunks = jax.lax.map(lambda chunk: on_chunk(*take(whole, chunk, size)), jnp.arange(num_chunks))
    return jax.tree.map(lambda x: join(x)[:, :L], chunks)


def best_width(columns: int, picked: int) -> int:
    """The power of two near sqrt(columns / picked), where columns / width + picked width is least.

    On a TPU at least the 128 lanes of a register, to which narrower bins would be filled up: compiled for a v5e, 50 of
    128256 ids in chunks of 1024 tokens take 2.5 GiB at a width of 64 and 1.0 GiB at 128.
    """
    width = 2 ** max(0, round(math.log2(columns / picked) / 2))
    return max(width, 128) if device.platform() == "tpu" else width


def binned(x_BLV: Array, width: int, fill: float) -> Array:
    """[B, L, V] -> [B, L, bins, width], the last bin filled up."""
    B, L, V = x_BLV.shape
    x_BLV = jnp.pad(x_BLV, ((0, 0), (0, 0), (0, -V % width)), constant_values=fill)
    return x_BLV.reshape(B, L, -1, width)


def look_into(binned_x: Array, bin_BLS: Array) -> Array:
    """The bins chosen for every token, [B, L, S, width]."""
    return jnp.take_along_axis(binned_x, bin_BLS[..., None], axis=2)
