"""Places where both sides have read the same text, against a walk along the rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import align
from jaxdistill.align import NO_CHUNK, NO_PLACE, Chunks

B, LENGTHS = 40, (23, 17)


def random_chunks(seed) -> Chunks:
    """Rows of chunks of 1 to 3 tokens a side, some tokens in none, some chunks that do not count."""
    rng = np.random.default_rng(seed)
    sides = [np.full((B, length), NO_CHUNK, np.int32) for length in LENGTHS]
    for row in range(B):
        at, chunk = [0, 0], 0
        while True:
            skip, count = rng.integers(0, 2, 2) * rng.integers(0, 2), rng.integers(1, 4, 2)
            if any(a + s + c > n for a, s, c, n in zip(at, skip, count, LENGTHS, strict=True)):
                break
            for side in (0, 1):
                at[side] += skip[side]
                sides[side][row, at[side] : at[side] + count[side]] = chunk
                at[side] += count[side]
            chunk += 1
    return Chunks(*sides, rng.random((B, min(LENGTHS))) < 0.8)


def walk(chunks, row, label):
    """The labels of the teacher and of the student in the chunk of this label, or None where it does not count."""
    teacher, student = chunks.teacher_BL[row], chunks.student_BL[row]
    chunk = student[label]
    if chunk == NO_CHUNK or not chunks.is_real_BC[row, chunk]:
        return None
    there, here = np.flatnonzero(teacher == chunk), np.flatnonzero(student == chunk)
    return there, here


@pytest.mark.parametrize("seed", range(5))
def test_places_are_what_a_walk_along_the_row_finds(seed):
    chunks = random_chunks(seed)
    begins, single, ends = (
        np.asarray(x) for x in (align.begins(chunks), align.begins(chunks, single=True), align.ends(chunks))
    )
    expected = np.full((3, B, LENGTHS[1]), NO_PLACE)
    for row in range(B):
        for label in range(LENGTHS[1]):
            if (found := walk(chunks, row, label)) is None:
                continue
            there, here = found
            if label == here[0]:
                expected[0, row, label] = there[0]
                if len(there) == len(here) == 1:
                    expected[1, row, label] = there[0]
            if label == here[-1] and label + 1 < LENGTHS[1] and there[-1] + 1 < LENGTHS[0]:
                expected[2, row, label + 1] = there[-1] + 1
    assert all((x >= 0).sum() > 9 for x in expected)
    for got, want in zip((begins, single, ends), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_states_are_those_of_the_places_and_zero_elsewhere():
    h_BLD = jnp.arange(2 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 3) + 1
    got = align.states_at(h_BLD, jnp.array([[2, NO_PLACE, 0], [NO_PLACE, 3, 3]]))
    np.testing.assert_array_equal(got[0], [h_BLD[0, 2], np.zeros(3), h_BLD[0, 0]])
    np.testing.assert_array_equal(got[1], [np.zeros(3), h_BLD[1, 3], h_BLD[1, 3]])
