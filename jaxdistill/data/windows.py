"""Fixed windows over a flat array of tokens, and the batch that a training step sees."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdistill.align import Chunks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed sequences with their next tokens. A pytree of arrays [B, L], NumPy on the host.

    Attributes:
      tokens_BL: int32, the input.
      label_BL: int32, the token that follows each input.
      weight_BL: float32, 1 where the label belongs to the same document as the input (its end of document included),
        0 where it opens another document and in the padding.
      segment_BL: int32, which document of the window an input belongs to, from 1; 0 in the padding.
      position_BL: int32, the place of an input in its document, from 0; a document cut by the window starts again at 0.
      signals: further numbers of the tokens by name, [B, L] each, that token weights read, and target transforms too
        where the name ends in _BL.
      target: what a teacher said of these tokens, where it was kept: a Target of NumPy arrays.
      beside: the same text in the tokens of another tokenizer, where the data are paired (`data.pairs`).
    """

    tokens_BL: jax.typing.ArrayLike
    label_BL: jax.typing.ArrayLike
    weight_BL: jax.typing.ArrayLike
    segment_BL: jax.typing.ArrayLike
    position_BL: jax.typing.ArrayLike
    signals: Mapping[str, jax.typing.ArrayLike] = dataclasses.field(default_factory=dict)
    target: Any = None
    beside: "Beside | None" = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beside:
    """The text of a batch in the teacher's tokens. A pytree, NumPy on the host.

    Attributes:
      batch: those tokens, [B, L_T], where L_T is a length of their own.
      chunks: which chunk of the common text the labels of either side belong to: teacher_BL is [B, L_T].
    """

    batch: Batch
    chunks: Chunks


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Concatenate-then-split packing: window i holds the inputs iL .. iL+L-1 and, one further on, their labels.

    Neighbours share one token, the last label of the one and the first input of the other, so that over all windows
    every token but the very first is a label exactly once. Only the last window can have padding.

    Attributes:
      tokens_T: the documents one after another, an `eos_id` after each; at least two tokens.
      length: L, inputs in a window.
      eos_id: ends a document; also fills the padding, where its weight is 0.
    """

    tokens_T: np.ndarray
    length: int
    eos_id: int

    def __len__(self) -> int:
        return -(-(len(self.tokens_T) - 1) // self.length)

    def batch(self, windows_B: np.ndarray) -> Batch:
        """The windows of these numbers, int [B]; the number -1 gives a row of padding."""
        return self.cut(np.asarray(windows_B) * self.length)

    def cut(self, first_B: np.ndarray) -> Batch:
        """Rows whose first inputs are these tokens, int [B], anywhere in a window; a negative one gives padding."""
        token = first_B[:, None] + np.arange(self.length + 1)
        is_real = (token < len(self.tokens_T)) & (first_B[:, None] >= 0)
        tokens = np.where(is_real, self.tokens_T[np.where(is_real, token, 0)], self.eos_id).astype(np.int32)
        is_end = tokens == self.eos_id
        segment = np.where(is_real, 1 + np.cumsum(is_end, axis=1, dtype=np.int32) - is_end, 0).astype(np.int32)
        opens = np.pad(is_end[:, :-1], ((0, 0), (1, 0)))
        place = np.arange(self.length + 1, dtype=np.int32)
        position = place - np.maximum.accumulate(np.where(opens, place, 0), axis=1)
        weight = (segment[:, 1:] == segment[:, :-1]) & is_real[:, 1:]
        return Batch(
            tokens_BL=tokens[:, :-1],
            label_BL=tokens[:, 1:],
            weight_BL=weight.astype(np.float32),
            segment_BL=segment[:, :-1],
            position_BL=position[:, :-1],
        )
