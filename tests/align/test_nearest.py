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


def test_every_token_has_the_lowest_id_of_least_distance():
    own, other = [b"", *words(2, 150, 8)], [*words(3, 120, 8), b""]
    steps = []
    got = nearest(own, {"eos": 0}, other, {"eos": 120}, steps.append)
    expected = [min(range(120), key=lambda there: (by_recursion(spelt, other[there]), there)) for spelt in own[1:]]
    assert got.tolist() == [120, *expected] and got.dtype == np.int32 and sum(steps) == len(own)
    assert sum(other[there] == spelt for there, spelt in zip(got[1:], own[1:], strict=True)) not in (0, 150)


def test_special_tokens_stand_for_roles_and_spell_nothing():
    own, other = [b"<s>", b"a", b"", b"<pad>"], [b"b", b"<s>", b"a"]
    got = nearest(own, {"bos": 0, "eos": 2, "pad": 3}, other, {"eos": 1})
    assert got.tolist() == [NO_MATCH, 2, 1, NO_MATCH]


def test_one_vocabulary_is_its_own_match():
    own = list(dict.fromkeys(words(4, 80)))
    assert nearest(own, {}, own, {}).tolist() == list(range(len(own)))
