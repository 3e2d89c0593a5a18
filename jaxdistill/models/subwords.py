"""Subwords as a second input of a model of bytes: beside each byte, the longest old token that ends with it.

A model moved from pieces of text to bytes loses what it knew of the pieces. ALM (arXiv 2503.20083, appendix C) gives it
back: the frozen old embedding of the longest old token, of at most 16 bytes, that ends at a byte is added to its own.

The old vocabulary is a table of G rows, spelt backwards and sorted. The text before a place, so read, stands somewhere
in that order, and the row just before it begins as it does for some bytes. A token that the text ends with begins all
rows between itself and the text. So the longest one is the row just before, or the longest token that this row begins
with and that is no longer than what they share. It is found in O(log G + Y) for each byte, in the step and in any
batch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.shard import Shard

NAME = "subwords"  # of the table among the parameters of a model, where nothing trains it
BYTES = 256  # ids from here on are no text: no subword reaches over them
UNUSED = 256  # fills the rows of old ids that are no subword, which so sort behind all others
NOTHING = -1  # behind the end of a subword
WORD = 3  # symbols of 9 bits in a word that is compared at once


def table(old_table: Sequence[bytes], embed_VD: Any, longest: int) -> dict[str, Any]:
    """The subwords of an old vocabulary, as `longest_ending` and a model take them.

    Args:
      old_table: the bytes of every old id; empty for special tokens. Of ids that spell the same
        the last counts, which is the letter where another is its byte fallback.
      embed_VD: the old embedding; padded rows behind the vocabulary do not count.
      longest: bytes of a subword at most, Y.

    Returns:
      {"reversed_GY": int16, "shorter_G": int32, "embed_GD"}: the bytes from the last on; the row of the longest subword
      that one ends with, beside itself, -1 where there is none; the old rows, zeros where a row is no subword.
    """
    chosen = {spelt[::-1]: token for token, spelt in enumerate(old_table) if 0 < len(spelt) <= longest}
    order = sorted(chosen)
    reversed_GY = np.full((len(old_table), longest), UNUSED, np.int16)
    reversed_GY[: len(order)] = NOTHING
    shorter_G = np.full(len(old_table), -1, np.int32)
    rows = {spelt: row for row, spelt in enumerate(order)}
    for spelt, row in rows.items():
        reversed_GY[row, : len(spelt)] = list(spelt)
        shorter_G[row] = next((rows[spelt[:n]] for n in range(len(spelt) - 1, 0, -1) if spelt[:n] in rows), -1)
    tokens = jnp.asarray([chosen[spelt] for spelt in order], jnp.int32)
    embed_GD = jnp.zeros((len(old_table), embed_VD.shape[1]), embed_VD.dtype)
    return {
        "reversed_GY": jnp.asarray(reversed_GY),
        "shorter_G": jnp.asarray(shorter_G),
        "embed_GD": embed_GD.at[: len(order)].set(embed_VD[tokens]),
    }


def fresh(num: int, longest: int, width: int) -> dict[str, Array]:
    """A table without subwords, of the shapes of one with `num` rows."""
    return {
        "reversed_GY": jnp.full((num, longest), UNUSED, jnp.int16),
        "shorter_G": jnp.full(num, -1, jnp.int32),
        "embed_GD": jnp.zeros((num, width)),
    }


def added(params: dict[str, Array], tokens_BL: Array, dtype: Any, shard: Shard = Shard()) -> Array:
    """What is added to the embedding of every byte, [B, L, D] in `dtype`; 0 where no subword ends."""
    row_BL = longest_ending(tokens_BL, params["reversed_GY"], params["shorter_G"])
    embed_GD = params["embed_GD"].astype(dtype)
    return shard.local(functools.partial(_rows, shard), "BLD", embed_GD=embed_GD, row_BL=row_BL)


def _rows(shard: Shard, embed_GD: Array, row_BL: Array) -> Array:
    """The rows of a device's bytes, [B, L, D]; 0 where there is none."""
    embed_GD = shard.gather(embed_GD, "GD", "D")
    return jnp.where(row_BL[..., None] >= 0, embed_GD[row_BL], 0)


def longest_ending(tokens_BL: Array, reversed_GY: Array, shorter_G: Array) -> Array:
    """The row of the longest subword that ends with each token, int32 [B, L]; -1 where there is none.

    Tokens below 256 are bytes. A row of a batch is all that is known of its text.
    """
    longest = reversed_GY.shape[1]
    text_BLY = _backwards(tokens_BL, longest)
    found_BL = _last_not_above(_words(reversed_GY), _words(text_BLY))
    alike_BLY = reversed_GY[jnp.maximum(found_BL, 0)] == text_BLY
    alike_BL = jnp.sum(jnp.cumprod(alike_BLY, axis=-1, dtype=jnp.int32), axis=-1)
    length_G = jnp.sum(reversed_GY >= 0, axis=-1)

    def shorten(_: Any, row_BL: Array) -> Array:
        too_long_BL = (row_BL >= 0) & (length_G[row_BL] > alike_BL)
        return jnp.where(too_long_BL, shorter_G[row_BL], row_BL)

    return jax.lax.fori_loop(0, longest, shorten, found_BL)


def _backwards(tokens_BL: Array, longest: int) -> Array:
    """Every byte and those before it, int16 [B, L, Y]; NOTHING before the text, and from a token that is no byte on."""
    L = tokens_BL.shape[1]
    padded = jnp.pad(tokens_BL, ((0, 0), (longest - 1, 0)), constant_values=BYTES)
    back_BLY = jnp.stack([padded[:, longest - 1 - y : longest - 1 - y + L] for y in range(longest)], axis=-1)
    is_text_BLY = jnp.cumprod(back_BLY < BYTES, axis=-1, dtype=jnp.int32) > 0
    return jnp.where(is_text_BLY, back_BLY, NOTHING).astype(jnp.int16)


def _words(symbols: Array) -> list[Array]:
    """[..., Y] symbols as a list of int32 [...] in which they compare alike, the most significant first."""
    longest = symbols.shape[-1]
    padded = jnp.pad(symbols.astype(jnp.int32) + 1, [(0, 0)] * (symbols.ndim - 1) + [(0, -longest % WORD)])
    return [
        (padded[..., at] << 18) | (padded[..., at + 1] << 9) | padded[..., at + 2] for at in range(0, longest, WORD)
    ]


def _last_not_above(sorted_words: list[Array], words: list[Array]) -> Array:
    """The last row of the table that is not above each text, int32; -1 where all are. By bisection."""
    number = len(sorted_words[0])

    def is_above(row: Array) -> Array:
        above, equal = jnp.zeros(row.shape, bool), jnp.ones(row.shape, bool)
        for table_word, word in zip(sorted_words, words, strict=True):
            above |= equal & (table_word[row] > word)
            equal &= table_word[row] == word
        return above

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # all rows below `low` are not above, all from `high` on are
        middle = (low + high) // 2
        above = is_above(jnp.minimum(middle, number - 1)) | (middle >= number)
        return jnp.where(above, low, jnp.minimum(middle + 1, high)), jnp.where(above, middle, high)

    zero = jnp.zeros(words[0].shape, jnp.int32)
    low, _ = jax.lax.fori_loop(0, number.bit_length(), halve, (zero, zero + number))
    return low - 1


def check_bytes(spelt: Sequence[bytes]) -> None:
    """InputError unless the ids below 256 are the bytes of the same number, as those of `data.Bytes` are."""
    if len(spelt) < BYTES or any(spelt[byte] != bytes([byte]) for byte in range(BYTES)):
        raise InputError(
            "start.subwords is for students of bytes: set data.tokenizer to Bytes(), or start.subwords to 0"
        )
