"""What the tests of alignment share: random vocabularies, and batches of one text that two of them have cut up.

A text is a list of symbols, bytes and special tokens, and is cut at random: what a tokenizer would prefer plays no part
in where chunks are. Vocabularies have all bytes, pieces that begin and end inside of characters, and the same bytes
under several ids.
"""

import dataclasses

import numpy as np
import pytest

from jaxdistill.align import Spelling

EOS = 256  # its symbol where it is the only role that both sides have
SAMPLES = ["", "a", "aab ba", " the  cat\n", "é€", "😀😀", "  \t\n", "naïve — 你好", "a\u0301", "\u2581x", "\x00\x00"]


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a batch; `spelt` are its rows again, as the symbols of every token, and () where there are none."""

    tokens_BL: np.ndarray
    is_real_BL: np.ndarray
    spelling: Spelling
    spelt: list[list[tuple[int, ...]]]


class Vocabulary:
    """All bytes, `more` random pieces of the texts, some of them twice, "eos" and a role of its own, in any order."""

    def __init__(self, rng, texts, role, more=30):
        source = b"".join(bytes(symbol for symbol in text if symbol < EOS) for text in texts)
        starts = rng.integers(0, len(source) + 1, more)
        pieces = [source[start : start + size] for start, size in zip(starts, rng.integers(1, 9, more), strict=True)]
        table = [bytes([byte]) for byte in range(256)] + [piece for piece in pieces if piece]
        table += [table[int(twin)] for twin in rng.integers(0, len(table), 5)] + [b"</s>", b"<other>", b""]
        order = rng.permutation(len(table))
        self.table = [table[place] for place in order]
        eos, other = (int(np.flatnonzero(order == len(table) - place)[0]) for place in (3, 2))
        self.roles = {"eos": eos, role: other}
        self.spelling = Spelling.of(self.table, self.roles)
        self.ids: dict[tuple[int, ...], list[int]] = {(EOS,): [eos]}
        for token, part in enumerate(self.table):
            if part and token not in (eos, other):
                self.ids.setdefault(tuple(part), []).append(token)

    def cut(self, rng, text):
        """A random tokenization, half of it by the longest piece: [(id, symbols)], tokens of its own role between."""
        text, tokens, place = tuple(text), [], 0
        while place < len(text):
            if rng.random() < 0.05:
                tokens.append((list(self.roles.values())[1], ()))
            fits = [part for size in range(1, 9) if (part := text[place : place + size]) in self.ids]
            part = fits[-1] if rng.random() < 0.5 else fits[rng.integers(len(fits))]
            tokens.append((rng.choice(self.ids[part]), part))
            place += len(part)
        return tokens

    def batch(self, rng, rows):
        """The rows [(id, symbols)] as arrays, padded at both ends with ids of any kind."""
        left = [int(rng.integers(0, 3)) for _ in rows]
        length = max(1, *(len(row) + n for row, n in zip(rows, left, strict=True)))
        tokens_BL = rng.integers(-1, len(self.table) + 1, (len(rows), length))
        is_real_BL = np.zeros(tokens_BL.shape, bool)
        spelt = [[()] * length for _ in rows]
        for number, (row, n) in enumerate(zip(rows, left, strict=True)):
            tokens_BL[number, n : n + len(row)] = [token for token, _ in row]
            is_real_BL[number, n : n + len(row)] = True
            spelt[number][n : n + len(row)] = [symbols for _, symbols in row]
        return Side(tokens_BL, is_real_BL, self.spelling, spelt)


def random_text(rng):
    """Symbols of a few documents, an end after each, or none at all."""
    text = []
    for _ in range(rng.integers(0, 4)):
        for sample in rng.choice(len(SAMPLES), rng.integers(0, 5)):
            text += SAMPLES[sample].encode()
        text += [EOS] if rng.random() < 0.8 else []
    return text


@pytest.fixture(scope="session")
def draw():
    """draw(seed, rows) -> (teacher, student): one text a row, cut up by two vocabularies and then cut off anywhere."""

    def draw(seed, rows=8, whole=0.5):
        rng = np.random.default_rng(seed)
        texts, sides = [random_text(rng) for _ in range(rows)], []
        for role in ("bos", "separator"):
            vocabulary = Vocabulary(rng, texts, role)
            cut = [vocabulary.cut(rng, text) for text in texts]
            cut = [row if rng.random() < whole else row[: rng.integers(0, len(row) + 1)] for row in cut]
            sides.append(vocabulary.batch(rng, cut))
        return tuple(sides)

    return draw


@pytest.fixture(scope="session")
def pair():
    """pair(teacher rows, student rows) of lists of bytes, None for "eos" -> (teacher, student), without padding."""

    def side(rows):
        table = sorted({part for row in rows for part in row if part}) + [b"</s>"]
        ids = [[table.index(b"</s>" if part is None else part) for part in row] for row in rows]
        spelt = [[(EOS,) if part is None else tuple(part) for part in row] for row in rows]
        tokens_BL = np.array(ids)
        return Side(tokens_BL, np.ones(tokens_BL.shape, bool), Spelling.of(table, {"eos": len(table) - 1}), spelt)

    return lambda teacher, student: (side(teacher), side(student))
