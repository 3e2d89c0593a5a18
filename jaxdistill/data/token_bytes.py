"""Which bytes each id stands for, so that tokens are spans of a text's UTF-8, whichever tokenizer cut it.

The offsets of the libraries do not serve: those of Hugging Face count characters and repeat where one takes several
tokens, those of SentencePiece give the first bytes of a byte fallback no width. A token may end inside a character.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdistill.errors import InputError

SPACE = "\u2581"  # as which SentencePiece and Metaspace write a space
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
# Byte-level BPE (Radford et al. 2019, GPT-2) writes a byte that Latin-1 prints as itself, the n-th other as 256 + n.
BYTE_LEVEL = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}


@dataclasses.dataclass(frozen=True)
class TokenBytes:
    """The bytes of every id of a tokenizer.

    Attributes:
      of_id: V byte strings; empty where no text encodes to the id: ends of documents, control and special tokens, gaps.
      prefix: whether encoding puts a space before a text, which the first token then carries and the text lacks.
    """

    of_id: tuple[bytes, ...]
    prefix: bool = False

    def join(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of the text that the ids [T] are all of."""
        joined = b"".join([self.of_id[token] for token in np.asarray(ids, np.int64).tolist()])
        return joined.removeprefix(b" ") if self.prefix else joined


def probed(of_id: Sequence[bytes], encode: Callable[[str], np.ndarray]) -> TokenBytes:
    """The TokenBytes of a tokenizer, of which one letter tells whether it puts a space before a text."""
    plain = TokenBytes(tuple(of_id))
    return dataclasses.replace(plain, prefix=plain.join(encode("a")).startswith(b" "))


def utf8(text: str) -> bytes:
    """The bytes of a text. Raises InputError for half of a surrogate pair, as which Python passes on invalid bytes."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start} is half of a surrogate pair, which no UTF-8 spells: repair the text before it "
            "is tokenized"
        ) from error


def of_sentencepiece(processor: Any) -> tuple[bytes, ...]:
    """The bytes of every id of a SentencePieceProcessor."""

    def of(token: int, piece: str) -> bytes:
        if processor.is_control(token) or processor.is_unknown(token):
            return b""
        return of_piece(piece, spaces=True, fallback=processor.is_byte(token))

    ids = range(processor.vocab_size())
    return tuple(of(token, piece) for token, piece in zip(ids, processor.id_to_piece(list(ids)), strict=True))


def of_piece(piece: str, *, spaces: bool, fallback: bool) -> bytes:
    """Of a piece as SentencePiece writes it: `spaces`, U+2581 is a space; `fallback`, <0x0A> is a byte."""
    if fallback and (byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)):
        return bytes.fromhex(byte[1])
    return (piece.replace(SPACE, " ") if spaces else piece).encode()


def of_byte_level(token: str) -> bytes:
    """Of a token in the alphabet of byte-level BPE; one with other characters stands for itself, as in the library."""
    return bytes(BYTE_LEVEL[c] for c in token) if BYTE_LEVEL.keys() >= set(token) else token.encode()


def speller(decoder: Mapping[str, Any] | None) -> Callable[[str], bytes]:
    """What maps a token to its bytes, by the "decoder" of a tokenizer.json.

    Raises InputError for a decoder that is neither byte-level nor of SentencePiece's kind: its tokens have no bytes of
    their own, such as those of WordPiece, between which spaces are guessed.
    """
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return of_byte_level
    replaced = [(step["pattern"], step["content"]) for step in steps if step["type"] == "Replace"]
    replaced += [({"String": step["replacement"]}, " ") for step in steps if step["type"] == "Metaspace"]
    is_known = kinds and kinds <= {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}
    if not is_known or any(step != ({"String": SPACE}, " ") for step in replaced):
        raise InputError(
            f"the decoder {', '.join(sorted(kinds)) or 'null'} of this tokenizer.json does not give every token bytes "
            "of its own, so its text cannot be had back: use a tokenizer of bytes or with byte fallback"
        )
    return functools.partial(of_piece, spaces=bool(replaced), fallback="ByteFallback" in kinds)
