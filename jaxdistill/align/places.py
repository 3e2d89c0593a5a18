"""Places of the teacher that belong to places of the student: where both have read the same text.

Place l of a row has read its labels before l and predicts label l, on either side.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.align.chunks import Chunks
from jaxdistill.align.likelihood import last_token

NO_PLACE = -1  # where the teacher has none


def begins(chunks: Chunks, single: bool = False) -> Array:
    """The teacher's place before the chunk that label l is the first token of, int32 [B, L] of the student.

    With `single`, only of chunks that are one token on both sides: there both predict the same piece of text.
    """
    size = chunks.is_real_BC.shape[1]
    firsts = [first_token(chunk_BL, size) for chunk_BL in (chunks.teacher_BL, chunks.student_BL)]
    counts_BC = chunks.is_real_BC
    if single:
        for chunk_BL, first_BC in zip((chunks.teacher_BL, chunks.student_BL), firsts, strict=True):
            counts_BC &= last_token(chunk_BL, size) == first_BC
    place_BC = jnp.where(counts_BC, firsts[0], NO_PLACE)
    return _put(place_BC, firsts[1], chunks.student_BL.shape[1])


def ends(chunks: Chunks) -> Array:
    """The teacher's place behind the chunk whose last token is label l - 1, int32 [B, L] of the student.

    What follows the last label of a row has no place on that side.
    """
    size, length = chunks.is_real_BC.shape[1], chunks.teacher_BL.shape[1]
    lasts = [last_token(chunk_BL, size) for chunk_BL in (chunks.teacher_BL, chunks.student_BL)]
    there_BC, here_BC = (jnp.where(last_BC < 0, NO_PLACE, last_BC + 1) for last_BC in lasts)
    place_BC = jnp.where(chunks.is_real_BC & (there_BC < length), there_BC, NO_PLACE)
    return _put(place_BC, here_BC, chunks.student_BL.shape[1])


def first_token(chunk_BL: Array | np.ndarray, chunks: int) -> Array:
    """The place of each chunk's first token, int32 [B, C]; negative for chunks without tokens."""
    backward_BL = jnp.flip(jnp.asarray(chunk_BL), axis=1)
    last_BC = last_token(backward_BL, chunks)
    return jnp.where(last_BC < 0, last_BC, chunk_BL.shape[1] - 1 - last_BC)


def states_at(h_BLD: Array, place_BL: Array) -> Array:
    """The states of these places of the same row, [B, L, D]; zeros where there is none."""
    picked_BLD = jnp.take_along_axis(h_BLD, jnp.maximum(place_BL, 0)[..., None], axis=1)
    return jnp.where(place_BL[..., None] >= 0, picked_BLD, 0)


def _put(place_BC: Array, at_BC: Array, length: int) -> Array:
    """[B, C] -> [B, L]: the entry of each chunk at this place, NO_PLACE elsewhere."""
    index_BC = jnp.where(at_BC < 0, length, at_BC)
    put = lambda place_C, index_C: jnp.full(length, NO_PLACE).at[index_C].set(place_C, mode="drop")  # noqa: E731
    return jax.vmap(put)(place_BC, index_BC)
