"""The tokenizer an experiment asks for, as configuration; `build` makes it, from the source if it must be trained."""

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from jaxdistill.data.progress import status
from jaxdistill.data.sources import Source
from jaxdistill.data.storage import cache_root, content_key, new_directory
from jaxdistill.data.tokenizers import (
    HUGGINGFACE_MODEL,
    ByteTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from jaxdistill.errors import InputError

Cache = str | os.PathLike[str] | None
LINE = 1024  # characters; SentencePiece drops a line of more than 4192 bytes without a word


class TokenizerConfig(Protocol):
    """What a choice of tokenizer is: a frozen dataclass with this method."""

    def build(self, source: Source, fingerprint: str, cache: Cache = None, quiet: bool = False) -> Tokenizer:
        """The tokenizer; one that must be trained sees the train split of `source`, whose fingerprint is given."""
        ...


@dataclasses.dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes: 257 ids, nothing to train."""

    def build(self, source: Source, fingerprint: str, cache: Cache = None, quiet: bool = False) -> Tokenizer:
        return ByteTokenizer()


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model trained on the source; the same source and settings always give the same model.

    Attributes:
      vocab_size: number of ids, of which 256 are bytes and 2 are the unknown piece and the end of a document.
      model_type: "unigram" (Kudo 2018, arXiv:1804.10959) or "bpe" (Sennrich et al. 2016, arXiv:1508.07909).
      character_coverage: the share of the text whose characters get an id of their own; the rare rest stay bytes.
      characters: how much of the train split to learn from, counted from its start.
    """

    vocab_size: int
    model_type: str = "unigram"
    character_coverage: float = 0.9995
    characters: int = 20_000_000

    def __post_init__(self):
        if self.model_type not in ("unigram", "bpe"):
            raise InputError(f"model_type={self.model_type!r} must be 'unigram' or 'bpe'")
        if self.vocab_size <= 258 or self.characters < 1:
            raise InputError("SentencePiece needs a vocab_size above 258 (the bytes and two marks) and some characters")
        if not 0 < self.character_coverage <= 1:
            raise InputError(f"character_coverage={self.character_coverage} must be above 0 and at most 1")

    def build(self, source: Source, fingerprint: str, cache: Cache = None, quiet: bool = False) -> Tokenizer:
        """From the cache if it is there; InputError where the text is too small or too rich for `vocab_size`."""
        import sentencepiece

        identity = {**dataclasses.asdict(self), "source": fingerprint, "sentencepiece": sentencepiece.__version__}
        directory = cache_root(cache) / "tokenizers" / content_key(identity)[:32]
        if not directory.exists():
            with status(f"training a {self.model_type} tokenizer of {self.vocab_size} ids", quiet):
                tokenizer = SentencePieceTokenizer(self._train(source))
            with new_directory(directory) as partial:
                tokenizer.save(partial)
        return load_tokenizer(directory)

    def _train(self, source: Source) -> bytes:
        import sentencepiece

        # A list, since an error raised inside the library's own reading of an iterator would come out as another one.
        lines = list(_lines(source.documents("train"), self.characters))
        if not lines:
            raise InputError("the train split has no text to learn a tokenizer from: give it some, or use Bytes()")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                vocab_size=self.vocab_size,
                model_type=self.model_type,
                character_coverage=self.character_coverage,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                unk_id=0,
                eos_id=1,
                bos_id=-1,
                pad_id=-1,
                num_threads=4,  # fixed, whatever the machine: the threads' sums are part of the result
                minloglevel=3,
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2]
            raise InputError(f"SentencePiece cannot learn {self.vocab_size} ids from this text: {reason}") from error
        return model.getvalue()


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """A ready `tokenizer.json`, or the directory that holds one.

    Attributes:
      path: of the file or the directory.
      eos: the token that ends a document; None for the `eos_token` of the tokenizer_config.json beside the file.
    """

    path: str
    eos: str | None = None

    def build(self, source: Source, fingerprint: str, cache: Cache = None, quiet: bool = False) -> Tokenizer:
        path = Path(self.path).expanduser()
        file = path / HUGGINGFACE_MODEL if path.is_dir() else path
        try:
            model = file.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the tokenizer {file}: {error.strerror}") from error
        return HuggingFaceTokenizer(model, self.eos or _configured_eos(file.parent / "tokenizer_config.json"))


def _configured_eos(file: Path) -> str:
    try:
        token = json.loads(file.read_bytes())["eos_token"]
        token = token["content"] if isinstance(token, dict) else token
    except (OSError, ValueError, KeyError, TypeError):
        token = None
    if not isinstance(token, str):
        raise InputError(f"{file} names no eos_token: name the token that ends a document with eos")
    return token


def _lines(documents: Iterable[str], characters: int) -> Iterator[str]:
    """The first `characters` of the documents, in lines of bounded length; without line ends, which stay bytes."""
    for text in documents:
        for line in text[:characters].replace("\u2581", "\n").split("\n"):
            yield from (line[start : start + LINE] for start in range(0, len(line), LINE))
        characters -= len(text)
        if characters <= 0:
            return
