"""Windows of the student's tokens beside the same text in the teacher's, where the two have other tokenizers.

Both tokenizers cut the same documents, in the same order, an end of document after each. So a split spells the same on
both sides: its bytes, and one symbol for every end of a document. The labels of a window are a range of these symbols,
and the teacher's row begins with the first of its tokens that starts in that range. Nothing is tokenized in training,
every token was cut with its whole document, and a row is found by bisection.
"""

import dataclasses
import os
from typing import Any, Literal

import numpy as np

from jaxdistill.align import Spans, Spelling, align, locate
from jaxdistill.data.corpus import tokenize
from jaxdistill.data.dataset import Dataset, Tokens
from jaxdistill.data.tokenizers import Tokenizer
from jaxdistill.data.windows import Batch, Beside, Windows
from jaxdistill.errors import InputError

BLOCK = 256  # tokens whose symbols are counted once, together: 8 bytes of memory for each block
READ = 4096  # blocks that are counted at a time
MEASURED = 1024  # windows that tell how many tokens the teacher needs
HELD = 0.999  # of their text, where no length is given
MULTIPLE = 8  # of which such a length is one


@dataclasses.dataclass(frozen=True, eq=False)
class Spelled(Windows):
    """Windows that know where their tokens stand in the text of the split.

    Attributes:
      spelling: what the tokens spell.
      takes_space_V: bool, the ids that lack the space they begin with where they open a document.
      before: int64, the symbols before every BLOCK-th token and, at the end, all there are.
    """

    spelling: Spelling
    takes_space_V: np.ndarray
    before: np.ndarray

    @classmethod
    def of(cls, windows: Windows, tokenizer: Tokenizer) -> "Spelled":
        """Reads all tokens once. Raises InputError where tokens have no bytes of their own."""
        spelled = tokenizer.token_bytes
        spelling = Spelling.of(spelled.of_id, {"eos": tokenizer.eos_id})
        takes_space_V = np.array([spelled.prefix and own.startswith(b" ") for own in spelled.of_id])
        made = cls(windows.tokens_T, windows.length, windows.eos_id, spelling, takes_space_V, np.zeros(0, np.int64))
        blocks = np.arange(-(-len(windows.tokens_T) // BLOCK))
        sums = [made._widths(blocks[at : at + READ]).sum(axis=1) for at in range(0, len(blocks), READ)]
        return dataclasses.replace(made, before=np.cumsum(np.concatenate([[0], *sums])))

    def symbols_before(self, token_B: np.ndarray) -> np.ndarray:
        """How many symbols of the text come before these tokens, int64 [B]."""
        block_B, place_B = np.divmod(token_B, BLOCK)
        is_before = np.arange(BLOCK) < place_B[:, None]
        return self.before[block_B] + (self._widths(block_B) * is_before).sum(axis=1)

    def first_from(self, symbol_B: np.ndarray) -> np.ndarray:
        """The first token that starts at each of these symbols or behind it, int64 [B]."""
        block_B = np.maximum(np.searchsorted(self.before, symbol_B) - 1, 0)
        widths = self._widths(block_B)
        start = self.before[block_B][:, None] + np.cumsum(widths, axis=1) - widths
        return block_B * BLOCK + (start < symbol_B[:, None]).sum(axis=1)

    def spans(self, batch: Batch, first_B: np.ndarray, begin_B: np.ndarray | int) -> Spans:
        """Of the labels of `batch`, which is `cut(first_B)`: the first one begins at these symbols, int [B]."""
        tokens_BL, label_BL = np.asarray(batch.tokens_BL), np.asarray(batch.label_BL)
        token = first_B[:, None] + 1 + np.arange(self.length)
        is_real_BL = (token < len(self.tokens_T)) & (first_B[:, None] >= 0)
        return locate(label_BL, is_real_BL, self.spelling, ("eos",), self._added(tokens_BL, label_BL), begin_B)

    def _widths(self, block_B: np.ndarray) -> np.ndarray:
        """Symbols of every token of these blocks, int64 [B, BLOCK]; 0 behind the last."""
        token = block_B[:, None] * BLOCK + np.arange(-1, BLOCK)
        ids = self.tokens_T.take(token, mode="wrap")  # before the first token comes the last one: an end of document
        previous, own = ids[:, :-1], ids[:, 1:]
        widths = np.diff(self.spelling.starts)[own] - self._added(previous, own)
        return np.where(token[:, 1:] < len(self.tokens_T), widths, 0)

    def _added(self, previous: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Which tokens begin with a space that the text lacks, given those before them."""
        return self.takes_space_V[own] & (previous == self.eos_id)


@dataclasses.dataclass(frozen=True, eq=False)
class Paired(Spelled):
    """The student's windows with the teacher's tokens beside them.

    Attributes:
      teacher: the same text; the length of its windows is that of a row, whose text is cut at the end where it is more.
      at: where chunks may end, as `align.align` takes it.
    """

    teacher: Spelled
    at: Literal["bytes", "spaces"]

    def batch(self, windows_B: np.ndarray) -> Batch:
        """The windows of these numbers, int [B], with `beside`; the number -1 gives a row of padding on both sides."""
        own_B = np.asarray(windows_B) * self.length
        symbol_B = self.symbols_before(np.maximum(own_B, 0) + 1)
        label_B = np.maximum(self.teacher.first_from(symbol_B), 1)  # the first token of a split is no label
        begin_B = self.teacher.symbols_before(label_B) - symbol_B
        other_B = np.where(own_B < 0, -1, label_B - 1)
        batch, other = self.cut(own_B), self.teacher.cut(other_B)
        chunks = align(self.teacher.spans(other, other_B, begin_B), self.spans(batch, own_B, 0), self.at)
        return dataclasses.replace(batch, beside=Beside(other, chunks))


def pair(
    tokens: Tokens,
    dataset: Dataset,
    teacher: Tokenizer,
    length: int | None = None,
    at: Literal["bytes", "spaces"] = "bytes",
    cache: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Dataset:
    """`dataset`, which `prepare(tokens)` gave, with the same text in the teacher's tokens beside every batch.

    `length` is how many inputs the teacher has for a window; None for what holds 99.9 % of the text of the training
    windows, rounded up to a multiple of 8. `at` is as `align.align` takes it. What the teacher's tokenizer has not cut
    yet goes into the cache.
    Raises InputError for ids without a text, a dataset that is not of these tokens, and a tokenizer that rewrites
    documents or whose tokens have no bytes of their own.
    """
    if length is not None and length < 1:
        raise InputError(f"length={length} of the teacher's rows must be at least 1, or None for what its text takes")
    fingerprint, splits = tokens.source.fingerprint(), {}
    own = {"train": (dataset.train, tokens.part), "validation": (dataset.held_out, (0, 1))}
    for name, (windows, part) in own.items():
        if not isinstance(windows, Windows):
            raise InputError("the data are ids, and no text that another tokenizer could cut: give a source of text")
        _check_same(name, dataset.manifest[name], fingerprint, part)
        _check_kept(name, "student", dataset.manifest[name])
        corpus = tokenize(tokens.source, fingerprint, teacher, name, part, cache, quiet)
        _check_kept(name, "teacher", corpus.manifest)
        student = Spelled.of(windows, dataset.tokenizer)
        other = Spelled.of(Windows(corpus.tokens_T, length or 1, teacher.eos_id), teacher)
        length = length or _length(student, other)
        splits[name] = Paired(**vars(student), teacher=dataclasses.replace(other, length=length), at=at)
    return dataclasses.replace(dataset, train=splits["train"], held_out=splits["validation"])


def _check_same(split: str, manifest: dict[str, Any], fingerprint: str, part: tuple[int, int]) -> None:
    if manifest["source_fingerprint"] != fingerprint or tuple(manifest["part"]) != part:
        raise InputError(
            f"the {split} split was prepared from another text or part of it: give the tokens that the dataset was "
            "prepared with, and prepare it again if its text has changed"
        )


def _check_kept(split: str, side: str, manifest: dict[str, Any]) -> None:
    if "rewritten" in manifest:
        raise InputError(
            f"two tokenizers are aligned on the bytes of one text, and the {side}'s changes {manifest['rewritten']} of "
            f"{manifest['documents']} documents of the {split} split ({manifest['first_rewritten']}): change the "
            "source in the same way, or use another tokenizer"
        )


def _length(student: Spelled, teacher: Spelled) -> int:
    """The least multiple of 8 that holds HELD of what the windows spell, in the teacher's tokens."""
    number = min(MEASURED, len(student))
    label_B = 1 + student.length * (np.arange(number) * len(student) // max(number, 1))
    after_B = np.minimum(label_B + student.length, len(student.tokens_T))
    first_B, stop_B = (teacher.first_from(student.symbols_before(token_B)) for token_B in (label_B, after_B))
    lengths = np.arange(MULTIPLE, (stop_B - first_B).max(initial=1) + MULTIPLE, MULTIPLE)
    held = np.minimum(stop_B - first_B, lengths[:, None]).sum(axis=1)
    return int(lengths[np.searchsorted(held, HELD * (stop_B - first_B).sum())])
