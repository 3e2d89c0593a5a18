"""FVT and TokenAdapt against their formulas, one token at a time in fp64."""

import math

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.models.transplant.fills import Mean
from jaxdistill.models.transplant.matching import match, missing
from jaxdistill.models.transplant.subwords import cut, fvt, local_global

U = 2.0**-24


@pytest.fixture
def copies(old_table, new_table):
    return match(old_table, {"eos": 0}, new_table, {"eos": 256})


@pytest.fixture
def cuts(old_table, new_table, copies, encode):
    return cut(old_table, new_table, copies, encode)


@pytest.fixture
def meanings():
    """Vectors [37, 6] and [261, 6] of some model of text."""
    rng = np.random.default_rng(5)
    return rng.normal(size=(37, 6)), rng.normal(size=(261, 6))


def test_tokens_are_cut_into_old_ones_that_spell_them(old_table, new_table, copies, cuts):
    tokens = missing(copies)
    assert len(cuts) == len(tokens)
    found = {new_table[token]: [old_table[i] for i in ids] for token, ids in zip(tokens, cuts, strict=True)}
    assert found[b"thing"] == [b"th", b"ing"] and found[b" thing"] == [b" ", b"th", b"ing"]
    assert found[b"Z"] == [] and found[b""] == []


def test_fvt_is_the_mean_of_the_old_rows_in_the_cut(old_table, new_table, copies, cuts, plain):
    rows = dict(zip(missing(copies).tolist(), fvt(cuts, Mean())(np, plain, len(cuts)), strict=True))
    for spelt in (b"thing", b" thing"):
        parts = [b"th", b"ing"] if spelt == b"thing" else [b" ", b"th", b"ing"]
        expected = np.mean([plain[old_table.index(part)].astype(np.float64) for part in parts], axis=0)
        got = rows[new_table.index(spelt)]
        np.testing.assert_allclose(got, expected, rtol=0, atol=5 * U * np.abs(plain).max())
    np.testing.assert_array_equal(rows[ord("Z")], Mean()(np, plain, 1)[0])
    np.testing.assert_array_equal(rows[260], Mean()(np, plain, 1)[0])


def test_fvt_of_a_token_that_is_one_old_token_is_a_copy(old_table, encode, plain):
    new, nothing_copied = [b"abc", b"ing", b"q"], np.full(3, -1)
    got = fvt(cut(old_table, new, nothing_copied, encode))(np, plain, 3)
    np.testing.assert_array_equal(got, plain[[old_table.index(spelt) for spelt in new]])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda text: [31, 20], r"\[b' ', b't'\]"),  # a space in front
        (lambda text: [0, 20], r"\[b'', b't'\]"),  # a beginning in front
        (lambda text: [20, 20], r"\[b't', b't'\]"),
    ],
    ids=["space", "beginning", "other text"],
)
def test_an_encode_whose_ids_spell_something_else_is_refused(old_table, wrong, told):
    with pytest.raises(InputError, match=f"^the old tokenizer cuts b't' into {told}: give an encode whose ids spell"):
        cut(old_table, [b"t"], np.array([-1]), wrong)


def softmax(scores):
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def cosine(a, b):
    return a @ b / math.sqrt((a @ a) * (b @ b))


def by_the_formula(spelt, new, ids, old_table, old, share, temperature, neighbours):
    """{old id: weight} of TokenAdapt for one token."""
    near = {i: cosine(old[i], new) for i in range(37) if old_table[i]}
    near = dict(sorted(near.items(), key=lambda item: -item[1])[:neighbours])
    weights = dict.fromkeys(range(37), 0.0)
    for i, weight in zip(near, softmax([score / temperature for score in near.values()]), strict=True):
        weights[i] += (share if ids else 1) * weight
    scores = [(cosine(old[i], new) + len(old_table[i]) / len(spelt)) / 2 / temperature for i in ids]
    for i, weight in zip(ids, softmax(scores), strict=True):
        weights[i] += (1 - share) * weight
    return np.array(list(weights.values()))


@pytest.mark.parametrize(("share", "temperature", "neighbours"), [(0.3, 0.3, 3), (0.0, 0.2, 1), (1.0, 1.0, 35)])
def test_token_adapt_is_its_formula(
    old_table, new_table, copies, cuts, meanings, share, temperature, neighbours
):  # fmt: skip
    old, new = meanings
    settings = {"share": share, "temperature": temperature, "neighbours": neighbours}
    got = local_global(cuts, old_table, new_table, copies, old, new, **settings)
    for row, token in enumerate(missing(copies)):
        weights = np.bincount(got.ids[row], got.weights[row], minlength=37)
        if not new_table[token]:
            assert not weights.any()
            continue
        expected = by_the_formula(new_table[token], new[token], cuts[row], old_table, old, *settings.values())
        np.testing.assert_allclose(weights, expected, rtol=0, atol=40 * U / temperature)


def test_token_adapt_counts_characters_and_not_bytes(old_table):
    old = (*old_table, "é".encode())
    new = ["aé".encode()]
    same = np.ones((1, 2))
    got = local_global([(1, 37)], old, new, np.array([-1]), np.ones((38, 2)), same, share=0.0)
    np.testing.assert_allclose(got.weights[0, :2], [0.5, 0.5], rtol=0, atol=4 * U)


def test_token_adapt_has_nothing_to_do_where_every_token_has_a_copy(old_table):
    copies = match(old_table, {"eos": 0, "bos": 35}, old_table, {"eos": 0, "bos": 35})
    meaning = np.ones((37, 2))
    assert local_global([], old_table, old_table, copies, meaning, meaning).weights.shape == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old_meaning_VC": np.ones((36, 6))}, r"meanings of the shapes \[36, 6\] and \[261, 6\] for 37 old and 261"),
        ({"new_meaning_VC": np.ones((261, 5))}, "old meanings have 6 dimensions and new ones 5"),
        ({"share": 1.5}, "share is 1.5, temperature 0.3, neighbours 3"),
        ({"temperature": 0.0}, "share is 0.3, temperature 0.0, neighbours 3"),
        ({"neighbours": 36}, "share is 0.3, temperature 0.3, neighbours 36: .* 1 to 35$"),
        ({"cuts": []}, "0 cuts, and 231 tokens have no copy"),
    ],
)
def test_what_does_not_fit_is_refused(old_table, new_table, copies, cuts, meanings, change, message):
    given = {"cuts": cuts, "old_table": old_table, "new_table": new_table, "copies": copies}
    given |= {"old_meaning_VC": meanings[0], "new_meaning_VC": meanings[1]}
    with pytest.raises(InputError, match=f"^{message}"):
        local_global(**(given | change))
