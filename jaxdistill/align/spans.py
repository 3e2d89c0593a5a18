"""Where tokens lie in their text: offsets by concatenating what the tokens spell, never by what a library reports.

Libraries count characters, give several tokens of one character the same offsets, or the first bytes of one no width.
Bytes put one after another have none of these faults, and can be held against the text.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxdistill.align.spelling import BYTES, NOTHING, Spelling
from jaxdistill.errors import InputError

SHOWN = 16  # symbols that an error message shows


@dataclasses.dataclass(frozen=True, eq=False)
class Spans:
    """Where the tokens of a batch lie. Padding and special tokens without a symbol have no width.

    Attributes:
      start_BL, end_BL: int32, in symbols (bytes, where `shared` is empty) from a place that both sides of a row share.
        The row begins at start_BL[:, 0].
      symbol_BY: int16, what the tokens of each row spell together; NOTHING before its beginning and behind its end.
      shared: the roles that have symbols, 256 and following.
    """

    start_BL: np.ndarray
    end_BL: np.ndarray
    symbol_BY: np.ndarray
    shared: tuple[str, ...]


def locate(
    tokens_BL: np.ndarray,
    is_real_BL: np.ndarray,
    spelling: Spelling,
    shared: Sequence[str] = (),
    added_BL: np.ndarray | bool = False,
    begin_B: np.ndarray | int = 0,
) -> Spans:
    """The spans of a batch: int [B, L] ids, bool [B, L] false in the padding.

    `added_BL`, bool [B, L], names the tokens that begin with a space which the text lacks, since the tokenizer put it
    before a document; they are spelt without it. `begin_B`, int [B], is how many symbols of the text come before those
    of each row, where the other side begins earlier.
    Raises InputError where a real id is not one of the tokenizer's or has neither bytes nor a role, where an added
    space is none, and for a shared role that the tokenizer does not have.
    """
    tokens_BL, is_real_BL = np.asarray(tokens_BL), np.asarray(is_real_BL, bool)
    _check_tokens(tokens_BL, is_real_BL, spelling)
    if missing := set(shared) - spelling.roles.keys():
        raise InputError(f"the tokenizer has no token for the shared role {min(missing)!r}: see shared_roles")
    tokens_BL = np.where(is_real_BL, tokens_BL, 0)
    added_BL = _added(tokens_BL, is_real_BL & added_BL, spelling)
    width_V = np.diff(spelling.starts)
    width_V[[token for role, token in spelling.roles.items() if role not in shared]] = 0
    width_BL = np.where(is_real_BL, width_V[tokens_BL] - added_BL, 0)
    begin_B1 = np.broadcast_to(np.asarray(begin_B, np.int32), len(width_BL))[:, None]
    end_BL = begin_B1 + np.cumsum(width_BL, axis=1, dtype=np.int32)

    place_Y = np.arange(end_BL.max(initial=0), dtype=np.int32)
    is_symbol_BY = (begin_B1 <= place_Y) & (place_Y < end_BL[:, -1:])
    symbol_BY = np.full(is_symbol_BY.shape, NOTHING, np.int16)
    first_BL = spelling.starts[tokens_BL] + added_BL
    symbol_BY[is_symbol_BY] = _spell(first_BL.ravel(), width_BL.ravel(), spelling, shared)
    return Spans((end_BL - width_BL).astype(np.int32), end_BL, symbol_BY, tuple(shared))


def _spell(first_T: np.ndarray, width_T: np.ndarray, spelling: Spelling, shared: Sequence[str]) -> np.ndarray:
    """The symbols of tokens one after another, int16: `width` of the table's from its `first` on."""
    before_T = np.cumsum(width_T) - width_T
    place = np.repeat(first_T - before_T, width_T)
    place += np.arange(len(place))
    symbols = spelling.symbols.copy()
    for number, role in enumerate(shared):
        symbols[spelling.starts[spelling.roles[role]]] = BYTES + number
    return symbols[place]


def check_text(spans: Spans, texts: Sequence[bytes]) -> None:
    """Raise InputError where a row's bytes are not the beginning of its text; it may have been cut at its end."""
    for row, (symbol_Y, text) in enumerate(zip(spans.symbol_BY, texts, strict=True)):
        spelt_Y = symbol_Y[(symbol_Y >= 0) & (symbol_Y < BYTES)].astype(np.uint8)
        if not text.startswith(spelt_Y.tobytes()):
            common = min(len(spelt_Y), len(text))
            differs = np.flatnonzero(spelt_Y[:common] != np.frombuffer(text, np.uint8)[:common])
            at = int(differs[0]) if len(differs) else common
            raise InputError(
                f"row {row} of the batch spells {show(spelt_Y[at : at + SHOWN])} at byte {at}, where its text has "
                f"{text[at : at + SHOWN]!r}: give the text as the normaliser leaves it, and added spaces in added_BL"
            )


def show(symbol_Y: np.ndarray, shared: Sequence[str] = ()) -> str:
    """The symbols for a person: b'bytes<eos>bytes'."""
    parts = [bytes([symbol]) if symbol < BYTES else f"<{shared[symbol - BYTES]}>".encode() for symbol in symbol_Y]
    return repr(b"".join(parts))


def _added(tokens_BL: np.ndarray, added_BL: np.ndarray, spelling: Spelling) -> np.ndarray:
    """1 at the tokens that carry an added space; InputError where there is none to take off."""
    token_T = tokens_BL[added_BL]
    wrong = np.append(spelling.symbols, np.int16(NOTHING))[spelling.starts[token_T]] != ord(" ")
    if wrong.any():
        raise InputError(
            f"the id {token_T[wrong][0]} is said to carry an added space and does not begin with one: added_BL names "
            "the first tokens of documents, and is for tokenizers that put a space before them"
        )
    return added_BL.astype(np.int64)


def _check_tokens(tokens_BL: np.ndarray, is_real_BL: np.ndarray, spelling: Spelling) -> None:
    if tokens_BL.shape != is_real_BL.shape or tokens_BL.ndim != 2 or not tokens_BL.shape[1]:
        raise InputError(f"tokens {tokens_BL.shape} and is_real {is_real_BL.shape} must both be [B, L], with L above 0")
    size = len(spelling.starts) - 1
    wrong_BL = is_real_BL & ((tokens_BL < 0) | (tokens_BL >= size))
    if wrong_BL.any():
        raise InputError(f"the batch holds the id {tokens_BL[wrong_BL][0]}, and the tokenizer has {size}: use its own")
    mute_BL = is_real_BL & (np.diff(spelling.starts) == 0)[np.where(is_real_BL, tokens_BL, 0)]
    if mute_BL.any():
        token = tokens_BL[mute_BL][0]
        raise InputError(f"the id {token} occurs in the batch and has neither bytes nor a role: give it a role")
