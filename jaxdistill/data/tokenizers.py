"""Tokenizers as they are used: text to ids and back, saved to a directory and loaded from it.

Every kind has the same attributes: `vocab_size`, ids are below it; `eos_id`, the id that ends a document and that no
text encodes to; `fingerprint`, a SHA-256 in hex that two tokenizers share only if they are the same; `token_bytes`,
what each id spells. The ids of a text spell `normalize(text)`: `data.round_trip` finds where that is another text.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxdistill.data.storage import write_file
from jaxdistill.data.token_bytes import SPACE, TokenBytes, of_sentencepiece, probed, speller, utf8
from jaxdistill.errors import InputError

CARD = "jaxdistill_tokenizer.json"  # written last: it says which kind the directory holds, and its fingerprint
SENTENCEPIECE_MODEL = "tokenizer.model"
HUGGINGFACE_MODEL = "tokenizer.json"


class Tokenizer(Protocol):
    """The interface; see the module."""

    vocab_size: int
    eos_id: int
    fingerprint: str

    @property
    def token_bytes(self) -> TokenBytes:
        """What every id spells; InputError where tokens have no bytes of their own."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 [T], without an end of document. Raises InputError for half of a surrogate pair."""
        ...

    def normalize(self, text: str) -> str:
        """The text that is cut into tokens: the same one, but for what the tokenizer rewrites by its own rules."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids. An end of document has none, and bytes that are no UTF-8 become U+FFFD."""
        ...

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write what `load_tokenizer` needs, beside whatever else the directory holds."""
        ...


class ByteTokenizer:
    """UTF-8 bytes, and 256 for the end of a document. Every text comes back as it was."""

    vocab_size = 257
    eos_id = 256
    fingerprint = hashlib.sha256(b"UTF-8 bytes; 256 ends a document").hexdigest()

    @functools.cached_property
    def token_bytes(self) -> TokenBytes:
        return TokenBytes(tuple(bytes([i]) if i < 256 else b"" for i in range(self.vocab_size)))

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def normalize(self, text: str) -> str:
        return text

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(ids, np.int32)
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")

    def save(self, directory: str | os.PathLike[str]) -> None:
        _write_card(directory, "bytes", self)


class SentencePieceTokenizer:
    """A SentencePiece model (Kudo & Richardson 2018, arXiv:1808.06226) with byte fallback and no normalisation.

    Every text comes back as it was. Control symbols are never read in it, and user-defined symbols always.
    """

    def __init__(self, model: bytes):
        """From a serialised model. Raises InputError for one that is broken or cannot represent every text."""
        import sentencepiece

        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise InputError(f"this is not a SentencePiece model: {error}") from error
        self.vocab_size = self.processor.vocab_size()
        self.eos_id = self.processor.eos_id()
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self._model = model
        # SentencePiece writes a space as U+2581, and so would read that character in a text as a space.
        self._meta = np.array([self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()], np.int32)
        if self.eos_id < 0 or self.processor.unk_id() in self._meta:
            raise InputError("a SentencePiece model needs an end of sentence and byte fallback: train it with both")
        self._within = sentencepiece.SentencePieceProcessor(model_proto=_without_prefix(model))

    @functools.cached_property
    def token_bytes(self) -> TokenBytes:
        return probed(of_sentencepiece(self.processor), self.encode)

    def encode(self, text: str) -> np.ndarray:
        utf8(text)
        first, *rest = text.split(SPACE)
        parts = [self.processor.encode_as_numpy(first)]
        for part in rest:
            parts += [self._meta, self._within.encode_as_numpy(part)]
        return np.concatenate(parts).astype(np.int32)

    def normalize(self, text: str) -> str:
        return text

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.processor.decode(np.asarray(ids, np.int32).tolist())

    def save(self, directory: str | os.PathLike[str]) -> None:
        write_file(Path(directory) / SENTENCEPIECE_MODEL, self._model)
        _write_card(directory, "sentencepiece", self)


def _without_prefix(model: bytes) -> bytes:
    """The model for what follows within a text, where no space is added; InputError for one that changes the text."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # ty: ignore[missing-attribute]  # made at import
    rules = proto.normalizer_spec
    has_suffix = rules.add_dummy_prefix and proto.trainer_spec.treat_whitespace_as_suffix
    if rules.precompiled_charsmap or rules.remove_extra_whitespaces or not rules.escape_whitespaces or has_suffix:
        raise InputError(
            f"a SentencePiece model must leave a text as it is, and this one, with the rules {rules.name!r}, changes "
            "spaces or characters: train it with normalization_rule_name='identity' and remove_extra_whitespaces=False"
        )
    rules.add_dummy_prefix = False
    return proto.SerializeToString()


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the Hugging Face tokenizers library.

    Text that spells a special token is encoded as ordinary text, nothing is truncated, and no special token is added.
    Whether a text comes back is up to the file: its normaliser rewrites what it was made to rewrite, some take a space
    that a text begins with for their own, and a vocabulary without all bytes loses what it cannot spell. Text that
    spells an added token which is not special is read as that token. `decode` is the library's, which reads an added
    token in the alphabet of the others; `token_bytes.join` takes it as it stands.
    """

    def __init__(self, model: bytes, eos: str):
        """From the bytes of a tokenizer.json and its end-of-document token; InputError where they do not fit."""
        try:
            import tokenizers
        except ImportError as error:
            raise InputError("a Hugging Face tokenizer needs a package: pip install 'jaxdistill[hf]'") from error
        try:
            self.tokenizer = tokenizers.Tokenizer.from_buffer(model)
        except Exception as error:  # the library raises nothing more precise
            raise InputError(f"this is not a tokenizer.json: {error}") from error
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        if eos not in vocabulary:
            raise InputError(f"the tokenizer has no token {eos!r} to end a document with: name another one with eos")
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        self.eos_id = vocabulary[eos]
        self.fingerprint = hashlib.sha256(model + eos.encode()).hexdigest()
        self._model, self._eos = model, eos

    @functools.cached_property
    def token_bytes(self) -> TokenBytes:
        of_id = [b""] * self.vocab_size
        for token, i in self.tokenizer.get_vocab(with_added_tokens=True).items():
            of_id[i] = token.encode()
        for token, i in self.tokenizer.get_vocab(with_added_tokens=False).items():
            of_id[i] = self._spell(token)
        added = self.tokenizer.get_added_tokens_decoder()
        for i in [self.eos_id, *(i for i, token in added.items() if token.special)]:
            of_id[i] = b""
        return probed(of_id, self.encode)

    @functools.cached_property
    def _spell(self) -> Callable[[str], bytes]:
        return speller(json.loads(self._model).get("decoder"))

    def encode(self, text: str) -> np.ndarray:
        utf8(text)
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def normalize(self, text: str) -> str:
        if self.tokenizer.normalizer is not None:
            text = self.tokenizer.normalizer.normalize_str(text)
        if self._spell(SPACE) == b" ":
            text = text.replace(SPACE, " ")
        return text.removeprefix(" ") if self.token_bytes.prefix else text

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(ids, np.int32)
        return self.tokenizer.decode(ids[ids != self.eos_id].tolist(), skip_special_tokens=False)

    def save(self, directory: str | os.PathLike[str]) -> None:
        write_file(Path(directory) / HUGGINGFACE_MODEL, self._model)
        _write_card(directory, "huggingface", self, eos=self._eos)


def load_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer that `save` wrote there, without its source; InputError where it is missing or damaged."""
    directory = Path(directory)
    try:
        card = json.loads((directory / CARD).read_bytes())
        tokenizer = _load(directory, card)
    except OSError as error:
        raise InputError(f"{directory} holds no saved tokenizer: {error.strerror}: {error.filename}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the tokenizer in {directory} is damaged: {error}; delete it and make it again") from error
    if tokenizer.fingerprint != card["fingerprint"]:
        raise InputError(
            f"the tokenizer in {directory} is damaged: its files do not fit its {CARD}; delete it and make it again"
        )
    return tokenizer


def _load(directory: Path, card: dict[str, Any]) -> Tokenizer:
    match card["kind"]:
        case "bytes":
            return ByteTokenizer()
        case "sentencepiece":
            return SentencePieceTokenizer((directory / SENTENCEPIECE_MODEL).read_bytes())
        case "huggingface":
            return HuggingFaceTokenizer((directory / HUGGINGFACE_MODEL).read_bytes(), card["eos"])
        case kind:
            raise ValueError(f"this version of jaxdistill knows no tokenizer of the kind {kind!r}")


def _write_card(directory: str | os.PathLike[str], kind: str, tokenizer: Tokenizer, **more: str) -> None:
    card = {"kind": kind, "fingerprint": tokenizer.fingerprint, **more}
    write_file(Path(directory) / CARD, json.dumps(card, indent=2).encode())
