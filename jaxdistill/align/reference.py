"""The definitions, of one row at a time in Python and float64: what `chunks` and `likelihood` compute for a batch.

A token is the tuple of its symbols: bytes, and 256 and above for special tokens. One without symbols is in no chunk.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxdistill.align.chunks import NO_CHUNK
from jaxdistill.align.likelihood import Debias
from jaxdistill.align.spelling import BYTES, SPACES

Token = tuple[int, ...]


def chunk_numbers(
    teacher: Sequence[Token], student: Sequence[Token], at: Literal["bytes", "spaces"] = "bytes"
) -> tuple[list[int], list[int]]:
    """The chunk of every token of the teacher, and of the student."""
    ends = common_ends(teacher, student)
    if at == "spaces":
        text = max(sum(teacher, ()), sum(student, ()), key=len)
        ends = [end for end in ends if may_end(text, end)]
    return numbers(teacher, ends), numbers(student, ends)


def common_ends(teacher: Sequence[Token], student: Sequence[Token]) -> list[int]:
    """Where chunks end (ALM, appendix I): whoever is behind reads a token, and where both are level a chunk ends."""
    ends, read, at = [], [0, 0], [0, 0]
    while True:
        if at[0] == at[1] and at[0] > (ends[-1] if ends else 0):
            ends.append(at[0])
        behind = 0 if at[0] <= at[1] else 1
        side = (teacher, student)[behind]
        if read[behind] == len(side):
            return ends
        at[behind] += len(side[read[behind]])
        read[behind] += 1


def may_end(text: Token, end: int) -> bool:
    """Whether a chunk may end at this offset of the text, where it must end at spaces."""
    opens = end < len(text) and (text[end] >= BYTES or text[end] in SPACES)
    return opens or text[end - 1] >= BYTES


def numbers(tokens: Sequence[Token], ends: Sequence[int]) -> list[int]:
    """How many chunks end at the start of each token or before; NO_CHUNK for what is in none."""
    found, start = [], 0
    for token in tokens:
        chunk = sum(end <= start for end in ends)
        found.append(chunk if token and chunk < len(ends) else NO_CHUNK)
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
