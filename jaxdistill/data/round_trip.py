"""Whether a tokenizer gives a text back, byte for byte: what it rewrites is said, what it loses is refused."""

import numpy as np

from jaxdistill.data.token_bytes import utf8
from jaxdistill.data.tokenizers import Tokenizer
from jaxdistill.errors import InputError

SHOWN = 8  # bytes

# Texts that tokenizers in use change: by composing, by folding width or case, by cleaning controls and spaces, by
# reading U+2581 as a space, and by knowing too few characters.
TEXTS = (
    "plain words", " leading", "trailing ", "two  spaces", "\ta\r\n\n b", "Upper", "e\u0301", "\u212b",
    "\uff21\u2460\ufb01", "a\u2581b", "\u4f60\u597d", "\u0634\u0643\u0631\u064b\u0627", "\U0001f468\u200d\U0001f469",
    "a\0b\x7f", "\ufeff\u00a0\u00ad",
)  # fmt: skip


def rewritten(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> str | None:
    """None where `ids` [T], which the tokenizer made of `text`, spell it; else how the text they spell differs from it.

    Such a text, `tokenizer.normalize(text)`, is what two tokenizers can be aligned on.

    Raises:
      InputError: they spell neither, so bytes were lost as the text was cut.
    """
    data, spelled = utf8(text), tokenizer.token_bytes.join(ids)
    if spelled == data:
        return None
    if spelled == tokenizer.normalize(text).encode():
        return f"the tokenizer rewrites text before it cuts it: {_difference(data, spelled)}"
    raise InputError(
        f"the tokenizer loses text: {_difference(data, spelled)}; use one of bytes or with byte fallback, or leave "
        f"out the document {text[:80]!r}"
    )


def known_change(tokenizer: Tokenizer) -> str | None:
    """How it changes the first of some texts that it does not give back; None where all come back.

    No list of texts is complete: `rewritten` judges each document when it is tokenized.

    Raises:
      InputError: the tokens have no bytes of their own, so no text comes back.
    """
    spelled = tokenizer.token_bytes
    for text in TEXTS:
        if (found := spelled.join(tokenizer.encode(text))) != (data := text.encode()):
            return f"the tokenizer does not give every text back: {_difference(data, found)}"
    return None


def _difference(data: bytes, spelled: bytes) -> str:
    """Both from the first byte that differs."""
    shorter = min(len(data), len(spelled))
    at = next((i for i in range(shorter) if data[i] != spelled[i]), shorter)
    return f"from byte {at} on, {data[at : at + SHOWN]!r} comes back as {spelled[at : at + SHOWN]!r}"
