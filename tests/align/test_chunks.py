"""Chunks: against the intersection of sets of offsets, on thousands of rows, and against the definition."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxdistill.align import NO_CHUNK, align, locate, reference, shared_roles
from jaxdistill.errors import InputError


def aligned(teacher, student, at="bytes", begins=(0, 0)):
    shared = shared_roles(teacher.spelling, student.spelling)
    sides = [
        locate(side.tokens_BL, side.is_real_BL, side.spelling, shared, begin_B=begin_B)
        for side, begin_B in zip((teacher, student), begins, strict=True)
    ]
    return align(*sides, at=at)


def offsets(tokens, begin):
    return list(itertools.accumulate(map(len, tokens), initial=begin))


def oracle(teacher, student, at, begins=(0, 0)):
    """The chunks of a row as [(tokens of the teacher, of the student)]: between neighbours of the common offsets."""
    sides = list(zip((teacher, student), begins, strict=True))
    text = {begin + place: symbol for side, begin in sides for place, symbol in enumerate(sum(side, ()))}
    common = set.intersection(*(set(offsets(*side)) for side in sides))
    if at == "spaces":
        before = {place for place, symbol in text.items() if symbol in (9, 10, 32, 256)}
        first = {begins[0]} if begins[0] == begins[1] else set()
        common &= first | before | {place + 1 for place, symbol in text.items() if symbol == 256}
    inside = lambda side, begin, low, high: [  # noqa: E731
        place for place, (token, last) in enumerate(zip(side, offsets(side, begin)[1:], strict=True))
        if token and low < last <= high
    ]  # fmt: skip
    return [tuple(inside(*side, low, high) for side in sides) for low, high in itertools.pairwise(sorted(common))]


def late(rng, side):
    """The side without some tokens at the beginning of its rows, and how many symbols those had."""
    left_B = rng.integers(0, side.tokens_BL.shape[1] + 1, len(side.spelt)) * (rng.random(len(side.spelt)) < 0.7)
    is_left_BL = np.arange(side.tokens_BL.shape[1]) < left_B[:, None]
    spelt = [[()] * left + row[left:] for row, left in zip(side.spelt, left_B, strict=True)]
    begin_B = [sum(map(len, row[:left])) for row, left in zip(side.spelt, left_B, strict=True)]
    return dataclasses.replace(side, is_real_BL=side.is_real_BL & ~is_left_BL, spelt=spelt), np.array(begin_B)


def by_chunk(chunk_L):
    return [np.flatnonzero(chunk_L == chunk).tolist() for chunk in range(chunk_L.max(initial=-1) + 1)]


@pytest.mark.parametrize("at", ["bytes", "spaces"])
@pytest.mark.parametrize("seed", range(20))
def test_chunks_lie_between_the_offsets_that_both_sides_have(draw, seed, at):
    for batch in range(15):
        teacher, student = draw((seed, batch))
        found = aligned(teacher, student, at)
        for row, sides in enumerate(zip(teacher.spelt, student.spelt, strict=True)):
            expected = oracle(*sides, at)
            got = list(zip(by_chunk(found.teacher_BL[row]), by_chunk(found.student_BL[row]), strict=True))
            assert got == expected
            assert found.is_real_BC[row].tolist() == [c < len(expected) for c in range(found.is_real_BC.shape[1])]


@pytest.mark.parametrize("at", ["bytes", "spaces"])
@pytest.mark.parametrize("seed", range(5))
def test_the_definition_says_the_same(draw, seed, at):
    for batch in range(15):
        teacher, student = draw((seed, batch, 7))
        found = aligned(teacher, student, at)
        for row, sides in enumerate(zip(teacher.spelt, student.spelt, strict=True)):
            defined = reference.chunk_numbers(*sides, at)
            assert (found.teacher_BL[row].tolist(), found.student_BL[row].tolist()) == defined


@pytest.mark.parametrize("at", ["bytes", "spaces"])
@pytest.mark.parametrize("seed", range(20))
def test_rows_may_begin_anywhere_in_their_text(draw, seed, at):
    rng = np.random.default_rng((seed, 8))
    for batch in range(15):
        (teacher, teacher_B), (student, student_B) = (late(rng, side) for side in draw((seed, batch, 8)))
        found = aligned(teacher, student, at, (teacher_B, student_B))
        for row, sides in enumerate(zip(teacher.spelt, student.spelt, strict=True)):
            begins = int(teacher_B[row]), int(student_B[row])
            expected = oracle(*sides, at, begins)
            got = (found.teacher_BL[row], found.student_BL[row])
            assert list(zip(*map(by_chunk, got), strict=True)) == expected
            assert found.is_real_BC[row].tolist() == [c < len(expected) for c in range(found.is_real_BC.shape[1])]
            assert tuple(chunk_L.tolist() for chunk_L in got) == reference.chunk_numbers(*sides, at, begins)


@pytest.mark.parametrize("seed", range(20))
def test_a_chunk_is_the_same_text_on_both_sides_and_together_they_are_the_text(draw, seed):
    teacher, student = draw(seed, whole=1.0)
    found = aligned(teacher, student)
    spell = lambda spelt, chunk_L: [sum((spelt[place] for place in mine), ()) for mine in by_chunk(chunk_L)]  # noqa: E731
    for row in range(len(teacher.spelt)):
        said = spell(teacher.spelt[row], found.teacher_BL[row])
        assert said == spell(student.spelt[row], found.student_BL[row])
        assert sum(said, ()) == sum(teacher.spelt[row], ())


@pytest.mark.parametrize("seed", range(20))
def test_with_one_tokenizer_every_token_is_its_own_chunk(draw, seed):
    side, _ = draw(seed)
    found = aligned(side, side)
    is_own_BL = side.is_real_BL  # both sides have all roles
    own_BL = np.where(is_own_BL, np.cumsum(is_own_BL, axis=1) - 1, NO_CHUNK)
    np.testing.assert_array_equal(found.teacher_BL, own_BL)
    np.testing.assert_array_equal(found.student_BL, own_BL)
    np.testing.assert_array_equal(found.is_real_BC.sum(1), is_own_BL.sum(1))


def test_a_chunk_may_end_inside_of_a_character(pair):
    teacher, student = pair([[b"\xe2", b"\x82\xac", b"a"]], [[b"\xe2", b"\x82", b"\xaca"]])
    found = aligned(teacher, student)
    assert found.teacher_BL.tolist() == [[0, 1, 1]] and found.student_BL.tolist() == [[0, 1, 1]]


def test_chunks_at_spaces_are_words_with_the_space_before_them(pair):
    teacher, student = pair(
        [[b"the", b" c", b"at", None, b"a\n", b"b"]], [[b"t", b"he", b" cat", None, b"a", b"\n", b"b"]]
    )
    found = aligned(teacher, student, at="spaces")
    assert found.teacher_BL.tolist() == [[0, 1, 1, 2, NO_CHUNK, NO_CHUNK]]  # what follows the last word is not known
    assert found.student_BL.tolist() == [[0, 0, 1, 2, NO_CHUNK, NO_CHUNK, NO_CHUNK]]
    assert found.is_real_BC.tolist() == [[True, True, True, False, False, False]]


def test_where_one_side_is_cut_earlier_only_chunks_whole_on_both_sides_are_left(pair):
    teacher, student = pair([[b"ab", b"cd", b"ef"]], [[b"a", b"b", b"c"]])
    found = aligned(teacher, student)
    assert found.teacher_BL.tolist() == [[0, NO_CHUNK, NO_CHUNK]]
    assert found.student_BL.tolist() == [[0, 0, NO_CHUNK]]
    assert found.is_real_BC.tolist() == [[True, False, False]]


def test_what_comes_before_the_first_common_border_is_in_no_chunk(pair):
    teacher, student = pair([[b"b c", b"d", b" e"]], [[b"a", b"b", b" ", b"cd", b" e"]])
    found = aligned(teacher, student, begins=(1, 0))
    assert found.teacher_BL.tolist() == [[0, 0, 1]]
    assert found.student_BL.tolist() == [[NO_CHUNK, 0, 0, 0, 1]]
    assert found.is_real_BC.tolist() == [[True, True, False]]
    found = aligned(*pair([[b"b", b"c", b"d"]], [[b"ab", b"c", b"d"]]), begins=(1, 0))  # in the middle of a token
    assert found.teacher_BL.tolist() == [[NO_CHUNK, 0, 1]] and found.student_BL.tolist() == [[NO_CHUNK, 0, 1]]
    found = aligned(*pair([[b"b c", b"d", b" e", b" f"]], [[b"a", b"b c", b"d", b" e", b" f"]]), "spaces", (1, 0))
    assert found.teacher_BL.tolist() == [[NO_CHUNK, NO_CHUNK, 0, NO_CHUNK]]  # a row begins there, and no word


def test_the_same_rows_further_on_in_their_text_have_the_same_chunks(draw):
    teacher, student = draw(0)
    for at in ("bytes", "spaces"):
        here, there = aligned(teacher, student, at), aligned(teacher, student, at, (7, 7))
        assert all(map(np.array_equal, jax.tree.leaves(here), jax.tree.leaves(there)))


def test_sides_that_share_no_symbol_have_no_chunk(pair):
    found = aligned(*pair([[b"c", b"d"]], [[b"a", b"b"]]), begins=(3, 0))
    assert not found.is_real_BC.any()
    assert {*found.teacher_BL.ravel(), *found.student_BL.ravel()} == {NO_CHUNK}


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ([b"the ", b"cat"], [b"the", b" hat"], r"row 0 .* at 4, after b'the ', the teacher has b'cat' and .* b'hat'"),
        ([b"a", None, b"b"], [b"a", b"b"], r"at 1, after b'a', the teacher has b'<eos>b' and the student b'b'"),
        ([b" a"], [b"a"], r"at 0, after b'', the teacher has b' a' and the student b'a'"),
    ],
)
def test_two_texts_are_refused_with_the_place_where_they_differ(pair, teacher, student, message):
    with pytest.raises(InputError, match=message):
        aligned(*pair([teacher], [student]))


def test_spans_that_do_not_belong_together_are_refused(pair):
    teacher, student = pair([[b"a"], [b"b"]], [[b"a"]])
    with pytest.raises(InputError, match="the teacher has 2 rows and the student 1"):
        aligned(teacher, student)
    with pytest.raises(InputError, match="not at 'words'"):
        aligned(teacher, teacher, at="words")
    plain, shared = (locate(student.tokens_BL, student.is_real_BL, student.spelling, roles) for roles in ((), ("eos",)))
    with pytest.raises(InputError, match=r"symbols for \(\) and \('eos',\): give both the same roles"):
        align(plain, shared)
