"""What a reader gives for one sequence of another system's cache."""

from typing import NamedTuple

import numpy as np


class Sequence(NamedTuple):
    """A teacher's most probable tokens at every position of one sequence.

    Attributes:
      tokens: int32, the sequence where the cache holds it: L of them, or L + 1 with the one that follows; else None.
      id_LS: int32; entry l is about the token that follows tokens[l]. NO_ID in entries that hold nothing.
      logp_LS: fp32, in nats and normalised over the whole vocabulary, as far as the cache kept it; MASKED likewise.
    """

    tokens: np.ndarray | None
    id_LS: np.ndarray
    logp_LS: np.ndarray
