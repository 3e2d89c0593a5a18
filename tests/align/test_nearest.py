"""The nearest tokens, against the table of all edit distances by its recursion."""

import functools

import numpy as np

from jaxdistill.align.nearest import NO_MATCH, distances, nearest


@functools.cache
def by_recursion(a: bytes, b: bytes) -> int:
    if not a or not b:
        return len(a) + len(b)
    exchanged = by_recursion(a[1:], b[1:]) + (a[0] != b[0])
    return min(exchanged, by_recursion(a[1:], b) + 1, by_recursion(a, b[1:]) + 1)


def words(seed, number, longest=6):
    rng = np.random.default_rng(seed)
    return [bytes(rng.choice(list(b"abc "), size=rng.integers(1, longest + 1)).tolist()) for _ in range(number)]


def test_distances_are_those_of_the_recursion():
    for length in (1, 3, 6):
        others = [word for word in words(0, 300) if len(word) == length]
        table = np.frombuffer(b"".join(others), np.uint8).reshape(-1, length)
        for word in words(1, 20):
            assert distances(word, table).tolist() == [by_recursion(word, other) for other in others]


def test_every_token_has_the_highest_id_of_least_distance():
    own, other = [b"", *dict.fromkeys(words(2, 150, 8))], [*words(3, 120, 8), b""]
    steps = []
    got = nearest(own, {"eos": 0}, other, {"eos": 120}, steps.append)
    expected = [min(range(120), key=lambda there: (by_recursion(spelt, other[there]), -there)) for spelt in own[1:]]
    assert got.tolist() == [120, *expected] and got.dtype == np.int32 and sum(steps) == len(own)
    assert sum(other[there] == spelt for there, spelt in zip(got[1:], own[1:], strict=True)) not in (0, 150)


def test_special_tokens_stand_for_roles_and_spell_nothing():
    own, other = [b"<s>", b"a", b"", b"<pad>"], [b"b", b"<s>", b"a"]
    got = nearest(own, {"bos": 0, "eos": 2, "pad": 3}, other, {"eos": 1})
    assert got.tolist() == [NO_MATCH, 2, 1, NO_MATCH]


def test_one_vocabulary_is_its_own_match_and_letters_go_before_bytes():
    own = words(4, 80, 3)
    assert len(set(own)) < 70 and nearest(own, {}, own, {}).tolist() == list(range(80))
    fallback_and_letter = [b"a", b"b", b"ab", b"a"]
    assert nearest([b"a", b"b"], {}, fallback_and_letter, {}).tolist() == [3, 1]
    assert nearest(fallback_and_letter, {}, [b"a", b"b"], {}).tolist() == [0, 1, 1, 0]
