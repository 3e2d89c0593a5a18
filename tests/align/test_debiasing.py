"""Debiasing in rational numbers: on a source of characters whose tokens have exact probabilities, for three tokenizers.

Characters follow each other as in a Markov chain; a tokenizer takes the longest piece it has. What it makes of a text's
beginning depends on what follows, so that p(tokens begin with t) is a sum over all that may follow: exact, and finite,
since no piece is longer than three characters. Pieces may have a space in front and none inside.
"""

import functools
import itertools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.align import Spelling, align, boundary_logp, chunk_logp, locate, merge, shared_roles

U = 2.0**-24
END = "."  # a special token
FOLLOWS = {
    "a": {"a": 3, "b": 5, " ": 2, END: 1},
    "b": {"a": 7, "b": 1, " ": 3, END: 2},
    " ": {"a": 2, "b": 3, " ": 1, END: 1},
    END: {"a": 4, "b": 1, " ": 1, END: 1},
}
PIECES = {
    "characters": ["a", "b", " "],
    "words": ["a", "b", " ", "ab", " a", " ab", "bab"],
    "others": [" ", "bb", "b", " b", "a", "ba", "aba", " ba"],
}
TEXT = "ab a bab  abba.b aab. abab a b.. ab"


def follows(character, following):
    return Fraction(FOLLOWS[character][following], sum(FOLLOWS[character].values()))


def probability(text):
    """Of the text as the beginning of all text; it begins as after an end."""
    return math.prod((follows(*pair) for pair in itertools.pairwise(END + text)), start=Fraction(1))


class Tokenizer:
    """Longest piece first, with exact probabilities of its tokens."""

    def __init__(self, pieces):
        self.table = [*pieces, END]
        self.spelling = Spelling.of([piece.encode() for piece in self.table], {"eos": len(pieces)})
        self.mass = functools.cache(self.mass)

    def encode(self, text):
        tokens = []
        while text:
            fits = [token for token, piece in enumerate(self.table) if text.startswith(piece)]
            tokens.append(max(fits, key=lambda token: len(self.table[token])))
            text = text[len(self.table[tokens[-1]]) :]
        return tuple(tokens)

    def mass(self, tokens):
        """p(the tokens of all text begin with these)."""
        text = "".join(self.table[token] for token in tokens)
        ahead = map("".join, itertools.product(FOLLOWS, repeat=2))
        return sum(probability(text + more) for more in ahead if self.encode(text + more)[: len(tokens)] == tokens)

    def next(self, tokens):
        """p(next token | tokens), one for each id."""
        return [self.mass((*tokens, token)) / self.mass(tokens) for token in range(len(self.table))]

    def of_text(self, text):
        """(ids, p of each, p(a boundary follows) of each)."""
        ids = self.encode(text)
        p = [self.next(ids[:place])[token] for place, token in enumerate(ids)]
        is_boundary, end = self.spelling.is_boundary(), len(self.table) - 1
        opens = lambda before: sum(q for q, inside in zip(self.next(before), is_boundary, strict=True) if inside)  # noqa: E731
        boundary = [Fraction(1) if ids[place] == end else opens(ids[: place + 1]) for place in range(len(ids))]
        return ids, p, boundary


TOKENIZERS = {name: Tokenizer(pieces) for name, pieces in PIECES.items()}
PAIRS = list(itertools.combinations(TOKENIZERS, 2))


def chunks_of(pair):
    sides = [np.array([TOKENIZERS[name].encode(TEXT)]) for name in pair]
    spelling = [TOKENIZERS[name].spelling for name in pair]
    return align(
        *(locate(x, x >= 0, s, shared_roles(*spelling)) for x, s in zip(sides, spelling, strict=True)), "spaces"
    )


def exact(name, chunk_L, debias):
    """The probabilities of the chunks in rational numbers."""
    _, p, boundary = TOKENIZERS[name].of_text(TEXT)
    found, before = [], Fraction(1)
    for chunk in range(chunk_L.max() + 1):
        mine = np.flatnonzero(chunk_L == chunk)
        own, after = math.prod(p[place] for place in mine), boundary[mine[-1]]
        found.append({"none": own, "outcome": own * after, "both": own * after / before}[debias])
        before = after
    return found


def of_characters():
    """What each chunk's probability is by the source: of its characters and of a boundary, given one in front."""
    opens = lambda character: Fraction(1) if character == END else follows(character, " ") + follows(character, END)  # noqa: E731
    words = [word for part in TEXT.replace(END, f"|{END}|").replace(" ", "| ").split("|")[:-1] if (word := part)]
    found, last, before = [], END, Fraction(1)
    for word in words:
        found.append(math.prod(follows(*pair) for pair in itertools.pairwise(last + word)) * opens(word[-1]) / before)
        last, before = word[-1], opens(word[-1])
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_probabilities_of_tokens_are_distributions_and_their_product_is_that_of_the_text(name):
    tokenizer = TOKENIZERS[name]
    for length in (0, 3, 9):
        assert sum(tokenizer.next(tokenizer.encode(TEXT)[:length])) == 1
    ids, p, _ = tokenizer.of_text(TEXT)
    assert math.prod(p) == tokenizer.mass(ids)
    assert "".join(tokenizer.table[token] for token in ids) == TEXT


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_with_both_corrections_every_tokenizer_gives_the_probability_that_the_source_does(pair):
    chunks, expected = chunks_of(pair), of_characters()
    assert len(expected) == 14
    assert exact(pair[0], chunks.teacher_BL[0], "both") == exact(pair[1], chunks.student_BL[0], "both") == expected


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_with_fewer_they_differ_except_for_the_first_word(pair):
    chunks = chunks_of(pair)
    raw, outcome = (
        (exact(pair[0], chunks.teacher_BL[0], debias), exact(pair[1], chunks.student_BL[0], debias))
        for debias in ("none", "outcome")
    )
    assert raw[0] != raw[1] and outcome[0] != outcome[1]
    assert outcome[0][0] == outcome[1][0]


@pytest.mark.parametrize("debias", ["none", "outcome", "both"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_device_computes_the_logarithms_of_these_numbers(pair, debias):
    chunks = chunks_of(pair)
    size = chunks.is_real_BC.shape[1]
    for name, chunk_BL in zip(pair, (chunks.teacher_BL, chunks.student_BL), strict=True):
        _, p, boundary = TOKENIZERS[name].of_text(TEXT)
        logp_BL, boundary_BL = (jnp.log(jnp.array([list(map(float, x))], jnp.float32)) for x in (p, boundary))
        got_BC = chunk_logp(logp_BL, chunk_BL, size, boundary_BL, debias)
        expected_C = [math.log(x) for x in exact(name, chunk_BL[0], debias)]
        # a chunk has up to 5 numbers of at most log(1000), each rounded as a probability, as a logarithm and in the sum
        np.testing.assert_allclose(got_BC[0, : len(expected_C)], expected_C, rtol=0, atol=5 * 3 * math.log(1000) * U)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_logits_give_the_probability_of_a_boundary(name):
    tokenizer = TOKENIZERS[name]
    ids, _, boundary = tokenizer.of_text(TEXT)
    p_LV = np.array([tokenizer.next(ids[: place + 1]) for place in range(len(ids))], np.float64)
    with np.errstate(divide="ignore"):
        z_BLV = np.maximum(np.log(p_LV), -1e30).astype(np.float32)[None] + 3
    masks = tokenizer.spelling.is_boundary(), tokenizer.spelling.is_special()
    got_BL = boundary_logp(jnp.array(z_BLV), np.array([ids]), *masks)
    np.testing.assert_allclose(got_BL[0], np.log(np.float64(boundary)), rtol=0, atol=16 * math.log(1000) * U)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_merged_chunks_agree_as_well(pair):
    chunks, numbers = chunks_of(pair), []
    for name in pair:
        _, p, boundary = TOKENIZERS[name].of_text(TEXT)
        numbers.append([jnp.log(jnp.array([list(map(float, x))], jnp.float32)) for x in (p, boundary)])
    merged = merge(chunks, numbers[0][1], gamma=0.4)
    size = merged.is_real_BC.shape[1]
    assert 3 < merged.is_real_BC.sum() < chunks.is_real_BC.sum()
    of_teacher, of_student = (
        chunk_logp(logp_BL, chunk_BL, size, boundary_BL, "both")
        for (logp_BL, boundary_BL), chunk_BL in zip(numbers, (merged.teacher_BL, merged.student_BL), strict=True)
    )
    np.testing.assert_allclose(of_teacher, of_student, rtol=0, atol=2 * 20 * 3 * math.log(1000) * U)
