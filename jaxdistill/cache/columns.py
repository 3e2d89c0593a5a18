"""Columns: the arrays of a store, and rows of tokens with different numbers of entries in them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class Column(NamedTuple):
    """An array of the store with one row a window: its dtype and the numbers in a row."""

    dtype: str
    width: int


def unsigned(largest: int) -> str:
    """The narrowest unsigned integer that reaches this number."""
    return next(dtype for dtype in ("uint8", "uint16", "uint32") if largest <= np.iinfo(dtype).max)


def differences(x_BLS: Array) -> Array:
    """Of neighbours among the entries of a token; the first stays as it is."""
    return jnp.diff(x_BLS, axis=-1, prepend=jnp.zeros_like(x_BLS[..., :1]))


def flatten(x_BLS: np.ndarray, number_BL: np.ndarray, column: Column) -> np.ndarray:
    """The first `number` entries of every token, moved to the front of each row of a column, [B, width]."""
    held_BLS = np.arange(x_BLS.shape[-1]) < number_BL[..., None]
    held = np.arange(column.width) < number_BL.sum(axis=-1)[:, None]
    flat = np.zeros(held.shape, column.dtype)
    flat[held] = x_BLS[held_BLS]
    return flat


class Ragged:
    """Where the entries of B rows of tokens are: turns flat columns into [B, L, S].

    S is `entries`, or the most that a token of these holds.
    """

    def __init__(self, number_BL: np.ndarray, capacity: int, entries: int | None = None):
        self._number = number_BL.ravel()
        self._held = np.arange(capacity) < number_BL.sum(axis=-1)[:, None]
        self.entries = int(number_BL.max(initial=0)) if entries is None else entries
        self._shape = (*number_BL.shape, self.entries)
        self._held_BLS = np.arange(self.entries) < number_BL[..., None]
        self._even = bool((number_BL == self.entries).all())

    def take(self, flat: np.ndarray) -> np.ndarray:
        """The entries of all tokens one after another, [entries]."""
        return flat[self._held]

    def sums(self, entries: np.ndarray) -> np.ndarray:
        """Undo `differences`: the running sum within every token, uint32 [entries]."""
        if self._even:
            return np.cumsum(entries.reshape(-1, self.entries), axis=-1, dtype=np.uint32).ravel()
        total = np.cumsum(entries, dtype=np.uint32)  # wraps, and so does what is taken off again
        first = np.cumsum(self._number) - self._number
        total -= np.repeat(total[first] - entries[first], self._number)
        return total

    def spread(self, entries: np.ndarray, fill: Any, dtype: Any) -> Any:
        """[entries] -> [B, L, S], with `fill` where a token holds nothing."""
        if self._even:
            return entries.astype(dtype).reshape(self._shape)
        out = np.full(self._shape, fill, dtype)
        out[self._held_BLS] = entries
        return out


def to_columns(packed: Mapping[str, Any], columns: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """What `pack` gave for B rows, as their columns on the host: per-token arrays as they are, entries flattened."""
    arrays = {name.rpartition("_")[0]: (name, np.asarray(x)) for name, x in packed.items()}
    return {
        stem: flatten(x, arrays["number"][1], columns[stem]) if name.endswith("_BLS") else _rows(x, columns[stem])
        for stem, (name, x) in arrays.items()
    }


def _rows(x: np.ndarray, column: Column) -> np.ndarray:
    """As rows in the dtype of a column; a logarithm of nothing becomes the lowest number that has a place there."""
    lowest = np.finfo(column.dtype).min if np.dtype(column.dtype).kind == "f" else np.iinfo(column.dtype).min
    return np.maximum(x, lowest).astype(column.dtype).reshape(len(x), column.width)
