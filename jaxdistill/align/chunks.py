"""Chunks: the finest pieces of a text that both tokenizers cut it into (ALM, arXiv 2503.20083, appendix I).

A border of a side is where one of its tokens ends, or its row begins. Chunks lie between neighbours among the borders
that both sides have: the intersection of two sets of offsets. The number of a token's chunk is one less than how many
of them lie at or before its start: one look-up in a running count. Nothing here is quadratic in the length.

Where one side begins later, what the other has before the first common border is in no chunk, like what either has
behind the last.
"""

import dataclasses
from typing import Literal

import jax
import numpy as np

from jaxdistill.align.spans import SHOWN, Spans, show
from jaxdistill.align.spelling import BYTES, NOTHING, SPACES
from jaxdistill.errors import InputError

NO_CHUNK = -1  # of padding, of special tokens that the other side lacks, and outside of the common borders


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunks:
    """Which chunk every token belongs to, numbered from 0 in each row. A pytree.

    Attributes:
      teacher_BL: int32, of the teacher's tokens; NO_CHUNK where there is none.
      student_BL: int32, of the student's tokens.
      is_real_BC: bool, the chunks that count. C is the smaller of the two lengths, which no row's chunks can exceed.
    """

    teacher_BL: jax.Array | np.ndarray
    student_BL: jax.Array | np.ndarray
    is_real_BC: jax.Array | np.ndarray


def align(teacher: Spans, student: Spans, at: Literal["bytes", "spaces"] = "bytes") -> Chunks:
    """The chunks of a batch in NumPy. Where one side begins later or was cut earlier, those that are whole on both.

    `at` says where a chunk may end, and begin unless both rows do: "bytes" wherever both sides end a token; "spaces"
    only where besides a special token is next or last, or the next byte is a space, a newline or a tab.
    Raises InputError where the two sides do not spell the same, and where they have symbols for different roles.
    """
    if at not in ("bytes", "spaces"):
        raise InputError(f"chunks can end at 'bytes' or at 'spaces', not at {at!r}")
    if teacher.shared != student.shared:
        raise InputError(f"the spans have symbols for {teacher.shared} and {student.shared}: give both the same roles")
    symbol_BY = _common_text(teacher, student)
    is_common_BY = _borders(teacher, symbol_BY) & _borders(student, symbol_BY)
    if at == "spaces":
        is_common_BY &= _may_end(symbol_BY) | _both_begin(teacher, student, symbol_BY)
    chunk_BY = np.cumsum(is_common_BY, axis=1, dtype=np.int32) - 1  # the one that goes on behind each offset
    size = min(teacher.end_BL.shape[1], student.end_BL.shape[1])
    return Chunks(_numbers(teacher, chunk_BY), _numbers(student, chunk_BY), np.arange(size) < chunk_BY[:, -1:])


def _common_text(teacher: Spans, student: Spans) -> np.ndarray:
    """What both sides spell, as far as the longer one of each row goes: int16 [B, Y]."""
    if len(teacher.end_BL) != len(student.end_BL):
        raise InputError(f"the teacher has {len(teacher.end_BL)} rows and the student {len(student.end_BL)}")
    length = max(teacher.symbol_BY.shape[1], student.symbol_BY.shape[1])
    padded = [
        np.pad(side.symbol_BY, ((0, 0), (0, length - side.symbol_BY.shape[1])), constant_values=NOTHING)
        for side in (teacher, student)
    ]
    differs_BY = (padded[0] != padded[1]) & (padded[0] != NOTHING) & (padded[1] != NOTHING)
    if differs_BY.any():
        row, place = np.argwhere(differs_BY)[0]
        before = show(padded[0][row, max(place - SHOWN, 0) : place], teacher.shared)
        first, second = (
            show(side.symbol_BY[row, place : side.end_BL[row, -1]][:SHOWN], teacher.shared)
            for side in (teacher, student)
        )
        raise InputError(
            f"row {row} is not the same text on both sides: at {place}, after {before}, the teacher has {first} and "
            f"the student {second}; tokenize the same bytes, and name spaces that a tokenizer adds in added_BL"
        )
    return np.maximum(*padded)


def _borders(side: Spans, symbol_BY: np.ndarray) -> np.ndarray:
    """bool [B, Y + 1]: the offsets at which the row begins or a token ends."""
    is_border_BY = np.zeros((len(symbol_BY), symbol_BY.shape[1] + 1), bool)
    np.put_along_axis(is_border_BY, side.start_BL[:, :1], True, axis=1)
    np.put_along_axis(is_border_BY, side.end_BL, True, axis=1)
    return is_border_BY


def _may_end(symbol_BY: np.ndarray) -> np.ndarray:
    """bool [B, Y + 1]: the offsets before a special token or a space, and after a special token."""
    is_special_BY = symbol_BY >= BYTES
    opens_BY = is_special_BY | np.isin(symbol_BY, list(SPACES))
    return np.pad(opens_BY, ((0, 0), (0, 1))) | np.pad(is_special_BY, ((0, 0), (1, 0)))


def _both_begin(teacher: Spans, student: Spans, symbol_BY: np.ndarray) -> np.ndarray:
    """bool [B, Y + 1]: the offsets at which both rows begin."""
    begin_B1 = teacher.start_BL[:, :1]
    return (np.arange(symbol_BY.shape[1] + 1) == begin_B1) & (begin_B1 == student.start_BL[:, :1])


def _numbers(side: Spans, chunk_BY: np.ndarray) -> np.ndarray:
    """int32 [B, L]: the chunk of every token."""
    chunk_BL = np.take_along_axis(chunk_BY, side.start_BL, axis=1)
    is_inside_BL = (side.end_BL > side.start_BL) & (chunk_BL < chunk_BY[:, -1:])
    return np.where(is_inside_BL, chunk_BL, NO_CHUNK).astype(np.int32)
