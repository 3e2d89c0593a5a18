"""The definitions, of one row at a time in Python and float64: what `chunks` and `likelihood` compute for a batch.

A token is the tuple of its symbols: bytes, and 256 and above for special tokens. One without symbols is in no chunk.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jaxdistill.align.chunks import NO_CHUNK
from jaxdistill.align.likelihood import Debias
from jaxdistill.align.spelling import BYTES, SPACES

Token = tuple[int, ...]


def chunk_numbers(
    teacher: Sequence[Token],
    student: Sequence[Token],
    at: Literal["bytes", "spaces"] = "bytes",
    begins: tuple[int, int] = (0, 0),
) -> tuple[list[int], list[int]]:
    """The chunk of every token of the teacher, and of the student, whose rows begin at these symbols of their text."""
    borders = common_borders(teacher, student, begins)
    if at == "spaces":
        sides = zip((teacher, student), begins, strict=True)
        text = dict(itertools.chain(*(enumerate(sum(side, ()), begin) for side, begin in sides)))
        borders = [place for place in borders if (place, place) == begins or may_end(text, place)]
    return numbers(teacher, borders, begins[0]), numbers(student, borders, begins[1])


def common_borders(teacher: Sequence[Token], student: Sequence[Token], begins: tuple[int, int]) -> list[int]:
    """Where chunks begin and end (ALM, appendix I): whoever is behind reads a token, until both are level."""
    borders, read, at = [], [0, 0], list(begins)
    while True:
        if at[0] == at[1] and at[0] not in borders:
            borders.append(at[0])
        behind = 0 if at[0] <= at[1] else 1
        side = (teacher, student)[behind]
        if read[behind] == len(side):
            return borders
        at[behind] += len(side[read[behind]])
        read[behind] += 1


def may_end(text: Mapping[int, int], end: int) -> bool:
    """Whether a chunk may end at this offset of the text, where it must end at spaces."""
    opens = end in text and (text[end] >= BYTES or text[end] in SPACES)
    return opens or text[end - 1] >= BYTES


def numbers(tokens: Sequence[Token], borders: Sequence[int], start: int) -> list[int]:
    """One less than how many borders lie at the start of each token or before; NO_CHUNK for what is in no chunk."""
    found = []
    for token in tokens:
        chunk = sum(border <= start for border in borders) - 1
        found.append(chunk if token and chunk < len(borders) - 1 else NO_CHUNK)
        start += len(token)
    return found


def log_probabilities(
    logp_L: Sequence[float], chunk_L: Sequence[int], boundary_L: Sequence[float], debias: Debias
) -> np.ndarray:
    """float64, one for every chunk that has tokens: L_c, L_c + S_c, or L_c + S_c - S_(c-1) where S_(-1) = 0."""
    count = max(chunk_L, default=NO_CHUNK) + 1
    places = [[place for place, chunk in enumerate(chunk_L) if chunk == wanted] for wanted in range(count)]
    total = np.array([math.fsum(logp_L[place] for place in mine) for mine in places])
    follows = np.array([boundary_L[mine[-1]] for mine in places])
    before = np.append(0.0, follows)[:count]
    return {"none": total, "outcome": total + follows, "both": total + follows - before}[debias]


def groups(follows_C: Sequence[float], gamma: float) -> list[int]:
    """The group of every chunk, from log P_T(boundary | chunk): how many before it end with more than gamma."""
    return [sum(math.exp(follows) > gamma for follows in follows_C[:chunk]) for chunk in range(len(follows_C))]
