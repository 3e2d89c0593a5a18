"""The tokens of one split on disk: every document once, each followed by an end of document, in one flat array.

A corpus is a directory `<cache>/tokens/<key>/` of two files: the tokens (little-endian uint16 or uint32) and a
manifest. The key is a hash of what the tokens depend on: source, tokenizer, split, part and format version. The length
of a window is not among them, since windows are cut from the flat array as they are read.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.data.progress import track
from jaxdistill.data.round_trip import rewritten
from jaxdistill.data.sources import Source, share
from jaxdistill.data.storage import cache_root, content_key, file_hash, new_directory
from jaxdistill.data.tokenizers import Tokenizer
from jaxdistill.errors import InputError

FORMAT = 1
TOKENS = "tokens.bin"
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens and their manifest.

    Attributes:
      tokens_T: uint16 or uint32 [T], mapped from the disk: documents in the source's order, an `eos_id` after each.
      manifest: what the tokens were made from, the counts of documents, tokens and UTF-8 bytes, and the checksum;
        where the tokenizer rewrote documents, how many, and how the first of them differs.
    """

    tokens_T: np.ndarray
    manifest: dict[str, Any]


def tokenize(
    source: Source,
    fingerprint: str,
    tokenizer: Tokenizer,
    split: str,
    part: tuple[int, int] = (0, 1),
    cache: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Corpus:
    """The tokens of a split of `source` (whose fingerprint is given), from the cache or else made and put there.

    `part` = (i, n) keeps the i-th of n disjoint parts of the documents. A document's content decides its part, so that
    copies of one document never stand in two. Any number of processes may ask for the same corpus at once.
    Raises InputError for a split or part without documents, a text that the tokenizer loses part of, a damaged corpus,
    and a disk that cannot be written.
    """
    identity = {
        "format": FORMAT,
        "source_fingerprint": fingerprint,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "split": split,
        "part": list(part),
    }
    directory = cache_root(cache) / "tokens" / content_key(identity)[:32]
    if not directory.exists():
        with new_directory(directory) as partial:
            documents = track(_of_part(source.documents(split), part), f"tokenizing {split}", quiet)
            facts = _write(partial / TOKENS, documents, tokenizer)
            if not facts["documents"]:
                raise InputError(_no_documents(source, split, part))
            manifest = {**identity, **facts, "source": source.describe()}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2))
            if "rewritten" in facts and not quiet:
                number, of = facts["rewritten"], facts["documents"]
                print(f"{number} of {of} documents ({split}): {facts['first_rewritten']}", file=sys.stderr)
    return _open(directory, identity)


def _of_part(documents: Iterator[str], part: tuple[int, int]) -> Iterator[str]:
    index, parts = part
    return (text for text in documents if int(share(text, "part") * parts) == index)


def _write(file: Path, documents: Iterable[str], tokenizer: Tokenizer) -> dict[str, Any]:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    counts = {"documents": 0, "tokens": 0, "bytes": 0}
    checksum, changes = hashlib.sha256(), []
    with open(file, "wb") as output:
        for text in documents:
            ids = tokenizer.encode(text)
            if (ids == tokenizer.eos_id).any():
                raise InputError(
                    f"the tokenizer reads its end of document in the text {text[:80]!r}: mark it as special"
                )
            if change := rewritten(tokenizer, text, ids):
                changes.append(change)
            encoded = np.append(ids, tokenizer.eos_id).astype(dtype).tobytes()
            output.write(encoded)
            checksum.update(encoded)
            counts["documents"] += 1
            counts["tokens"] += len(ids) + 1
            counts["bytes"] += len(text.encode())
    said = {"rewritten": len(changes), "first_rewritten": changes[0]} if changes else {}
    return {**counts, **said, "dtype": dtype.str, "sha256": checksum.hexdigest()}


def _no_documents(source: Source, split: str, part: tuple[int, int]) -> str:
    where = f"part {part[0]} of {part[1]} of the {split} split" if part[1] > 1 else f"the {split} split"
    return f"{where} of {source} has no documents: give more text, or divide it otherwise"


def _open(directory: Path, identity: dict[str, Any]) -> Corpus:
    """A finished corpus; InputError naming it where its files are not those that were written."""
    mend = f"delete {directory} to have it made again"
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        size = (directory / TOKENS).stat().st_size
        expected = manifest["tokens"] * np.dtype(manifest["dtype"]).itemsize
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the corpus {directory} is damaged ({error}): {mend}") from error
    if size != expected:
        raise InputError(f"the corpus {directory} is damaged ({TOKENS} has {size} bytes, not {expected}): {mend}")
    if file_hash(directory / TOKENS) != manifest["sha256"]:
        raise InputError(f"the corpus {directory} is damaged (the checksum of {TOKENS} does not fit): {mend}")
    if any(manifest.get(name) != value for name, value in identity.items()):
        raise InputError(f"the corpus {directory} is of another source or tokenizer than its name says: {mend}")
    return Corpus(np.memmap(directory / TOKENS, manifest["dtype"], mode="r"), manifest)
