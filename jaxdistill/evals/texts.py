"""Texts to score a model on: a split of its own data, or any files, one source at a time."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxdistill.data import Batch, Dataset, Files, Tokenizer
from jaxdistill.data.sequences import Padded
from jaxdistill.data.sources import SPLITS
from jaxdistill.data.windows import Windows
from jaxdistill.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Windows of one source.

    Attributes:
      windows: all there are.
      number: how many of them count, spread evenly.
      bytes_per_token: UTF-8 bytes of the whole source over its tokens, ends of documents included.
    """

    windows: Windows | Padded
    number: int
    bytes_per_token: float

    def at_most(self, number: int | None) -> "Text":
        """The same text, of which no more than `number` windows count; None changes nothing."""
        return self if number is None else dataclasses.replace(self, number=min(number, self.number))

    def batches(self, size: int) -> Iterator[Batch]:
        """The windows that count, `size` a batch; the last one is filled up with rows of weight 0."""
        chosen = np.arange(self.number) * len(self.windows) // self.number
        padded = np.pad(chosen, (0, -self.number % size), constant_values=-1)
        return (self.windows.batch(row) for row in padded.reshape(-1, size))


def of_split(dataset: Dataset, split: str) -> Text:
    """All of a split, "train" or "validation", of prepared data."""
    windows = {"validation": dataset.held_out, "train": dataset.train}[split]
    facts = dataset.manifest[split]
    return Text(windows, len(windows), facts["bytes"] / facts["tokens"])


def of_files(path: str, tokenizer: Tokenizer, length: int) -> Text:
    """All documents of some files.

    Args:
      path: a file, directory or glob, as `data.Files` takes it.
      tokenizer: of the model.
      length: L, inputs in a window.

    Raises InputError where the files cannot be read or hold less than two tokens.
    """
    source = Files(path)
    documents = [text for split in SPLITS for text in source.documents(split)]
    ends = np.array([tokenizer.eos_id], np.int32)
    pieces = [piece for text in documents for piece in (tokenizer.encode(text), ends)]
    tokens_T = np.concatenate([np.zeros(0, np.int32), *pieces])
    if len(tokens_T) < 2:
        raise InputError(f"{path} holds no text to evaluate on")
    windows = Windows(tokens_T, length, tokenizer.eos_id)
    return Text(windows, len(windows), sum(len(text.encode()) for text in documents) / len(tokens_T))
