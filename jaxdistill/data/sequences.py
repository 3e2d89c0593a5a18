"""Sequences that are ids already, each a window of its own: the data of a teacher that has spoken elsewhere.

They are read once, into a directory `<cache>/sequences/<key>/` under a hash of what they depend on:

    tokens.bin      the sequences one after another, little-endian uint16 or uint32
    starts.npy      where each begins and, at the end, how many tokens there are: int64 [R + 1]
    bytes.npy       UTF-8 bytes of the text of each, int64 [R]
    manifest.json   the checksums of the others, written last
"""

import dataclasses
import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill.data.progress import status
from jaxdistill.data.storage import cache_root, content_key, file_hash, new_directory
from jaxdistill.data.tokenizers import Tokenizer
from jaxdistill.data.windows import Batch, Windows
from jaxdistill.errors import InputError

FORMAT = 1
TOKENS, STARTS, BYTES, MANIFEST = "tokens.bin", "starts.npy", "bytes.npy", "manifest.json"
SUFFIXES = (".npy", ".parquet")
COLUMN = "input_ids"


@dataclasses.dataclass(frozen=True)
class Sequences:
    """A user's own ids, in the order of the files' names and of the rows in each.

    Attributes:
      files: a file, a directory or a glob of .npy files, integers [R, n], and .parquet files with a column `input_ids`.
      validation_every: of so many sequences the first is for validation.
    """

    files: str
    validation_every: int = 100

    def __post_init__(self):
        if self.validation_every < 2:
            raise InputError(f"validation_every={self.validation_every} leaves nothing to train on: give at least 2")

    def documents(self, split: str) -> Iterator[str]:
        """InputError: there is no text to learn a tokenizer from."""
        raise InputError(f"{self.files} holds ids and no text: name the tokenizer that made them, such as HuggingFace")

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the files' content in their order."""
        return content_key({"sequences": [(file.suffix, file_hash(file)) for file in self._files()]})

    def describe(self) -> dict[str, Any]:
        return {"source": "sequences", "files": [str(file) for file in self._files()]}

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """(where it stands, ids [n]) of every sequence; InputError where a file is not what it should be."""
        for file in self._files():
            rows = _of_array(file) if file.suffix == ".npy" else _of_parquet(file)
            yield from ((f"row {row} of {file}", ids) for row, ids in enumerate(rows))

    def _files(self) -> list[Path]:
        root = Path(self.files).expanduser()
        named = [root] if root.exists() else map(Path, glob.glob(str(root), recursive=True))
        found = [file for path in named for file in (path.rglob("*") if path.is_dir() else [path])]
        if not (files := {file for file in found if file.suffix in SUFFIXES}):
            raise InputError(f"{self.files!r} names no file of sequences: their names end in {' or '.join(SUFFIXES)}")
        return sorted(files, key=Path.as_posix)


def _of_array(file: Path) -> Iterator[np.ndarray]:
    try:
        ids_RL = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(ids_RL, np.ndarray) or ids_RL.ndim != 2:
        raise InputError(f"{file} holds no sequences: write an array of two dimensions, a sequence a row")
    yield from ids_RL


def _of_parquet(file: Path) -> Iterator[np.ndarray]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(f"reading {file} needs pyarrow: pip install 'jaxdistill[parquet]'") from error
    try:
        with pq.ParquetFile(file) as table:
            schema, lists = table.schema_arrow, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
            if COLUMN not in schema.names or not isinstance(schema.field(COLUMN).type, lists):
                raise InputError(
                    f"{file} has no column {COLUMN!r} of lists of integers: its columns are {schema.names}"
                )
            for batch in table.iter_batches(batch_size=64, columns=[COLUMN]):
                rows = (row.values for row in batch.column(0))
                yield from (np.zeros(0) if ids is None else ids.to_numpy(zero_copy_only=False) for ids in rows)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Padded:
    """Windows of one sequence each, filled up with padding: as `data.windows.Windows`, without the packing.

    Attributes:
      tokens_T: all sequences of the source one after another.
      starts: where each begins and, at the end, how many tokens there are, [R + 1].
      numbers: of the sequences that are windows here.
      length: L, inputs in a window; no sequence has more than L + 1 tokens.
      eos_id: ends a document; also fills the padding, where its weight is 0.
    """

    tokens_T: np.ndarray
    starts: np.ndarray
    numbers: np.ndarray
    length: int
    eos_id: int

    def __len__(self) -> int:
        return len(self.numbers)

    def sequence(self, window: int) -> np.ndarray:
        """All tokens of a window and the label of its last, without padding."""
        number = self.numbers[window]
        return self.tokens_T[self.starts[number] : self.starts[number + 1]]

    def batch(self, windows_B: np.ndarray) -> Batch:
        """The windows of these numbers, int [B]; the number -1 gives a row of padding."""
        windows_B, size = np.asarray(windows_B), self.length + 1
        first_B, after_B = (self.starts[self.numbers[windows_B] + place] for place in (0, 1))
        token = first_B[:, None] + np.arange(size)
        is_real = (token < after_B[:, None]) & (windows_B[:, None] >= 0)
        tokens = np.where(is_real, self.tokens_T[np.where(is_real, token, 0)], self.eos_id)
        # Packed with one input more, rows are windows; that input is dropped, whose label is the next row's.
        packed = Windows(tokens.ravel(), size, self.eos_id).batch(np.arange(len(windows_B)))
        batch = jax.tree.map(lambda x: x[:, : self.length], packed)
        segment_BL, weight_BL = batch.segment_BL * is_real[:, :-1], batch.weight_BL * is_real[:, 1:]
        return dataclasses.replace(batch, segment_BL=segment_BL, weight_BL=weight_BL)


def split(
    source: Sequences,
    fingerprint: str,
    tokenizer: Tokenizer,
    length: int,
    part: tuple[int, int] = (0, 1),
    cache: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> dict[str, tuple[Padded, dict[str, Any]]]:
    """(windows, manifest) of "train" and "validation", read into the cache where they are not there.

    `part` = (i, n) trains on every n-th of the training sequences from the i-th on.
    Raises InputError for a sequence that is empty, does not fit a window or has ids that the tokenizer lacks, for a
    part without sequences, and for whatever cannot be read or written.
    """
    tokens_T, starts, bytes_R, stored = _stored(source, fingerprint, tokenizer, cache, quiet)
    length_R = np.diff(starts)
    if (longest := int(length_R.max())) > length + 1:
        raise InputError(
            f"sequence {length_R.argmax()} of {source.files} has {longest} tokens, and a window of length={length} "
            f"takes {length + 1}: set length={longest - 1}, or cut the sequences"
        )
    if longest < 2:
        raise InputError(f"{source.files} holds no sequence of two tokens: there is nothing to predict")
    is_train_R = np.arange(len(length_R)) % source.validation_every > 0
    numbers = {"train": np.flatnonzero(is_train_R)[part[0] :: part[1]], "validation": np.flatnonzero(~is_train_R)}
    if not len(numbers["train"]):
        raise InputError(
            f"{source.files} holds {len(length_R)} sequences, of which part {part[0]} of {part[1]} has none to train "
            "on: give more, or divide them otherwise"
        )

    def manifest(own: np.ndarray) -> dict[str, Any]:
        counts = {"sequences": len(own), "tokens": int(length_R[own].sum()), "bytes": int(bytes_R[own].sum())}
        return {**stored, **counts, "source": source.describe()}

    return {
        name: (Padded(tokens_T, starts, own, length, tokenizer.eos_id), manifest(own)) for name, own in numbers.items()
    }


def _stored(
    source: Sequences, fingerprint: str, tokenizer: Tokenizer, cache: str | os.PathLike[str] | None, quiet: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """(tokens_T, starts, bytes_R, manifest), from the cache or else made and put there."""
    identity = {"format": FORMAT, "source_fingerprint": fingerprint, "tokenizer_fingerprint": tokenizer.fingerprint}
    directory = cache_root(cache) / "sequences" / content_key(identity)[:32]
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    if not directory.exists():
        with status(f"reading {source.files}", quiet), new_directory(directory) as partial:
            _write(partial, source, tokenizer, dtype)
            sums = {name: file_hash(partial / name) for name in (TOKENS, STARTS, BYTES)}
            (partial / MANIFEST).write_text(json.dumps({**identity, "sha256": sums}, indent=2))
    try:
        stored = json.loads((directory / MANIFEST).read_bytes())
        if damaged := [name for name, sha256 in stored["sha256"].items() if file_hash(directory / name) != sha256]:
            raise ValueError(f"the checksum of {damaged[0]} does not fit")
        tokens_T = np.memmap(directory / TOKENS, dtype, mode="r")
        return tokens_T, np.load(directory / STARTS), np.load(directory / BYTES), stored
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(f"{directory} is damaged ({error}): delete it to have it made again") from error


def _write(directory: Path, source: Sequences, tokenizer: Tokenizer, dtype: np.dtype) -> None:
    starts, sizes = [0], []
    with open(directory / TOKENS, "wb") as output:
        for where, ids in source.read():
            if not len(ids) or ids.dtype.kind not in "iu":
                raise InputError(f"{where} holds no integers: every sequence needs ids, at least one")
            if not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
                wrong = ids[(ids < 0) | (ids >= tokenizer.vocab_size)][0]
                raise InputError(
                    f"{where} holds the id {wrong}, and the tokenizer has {tokenizer.vocab_size}: name its own"
                )
            output.write(ids.astype(dtype).tobytes())
            starts.append(starts[-1] + len(ids))
            sizes.append(len(tokenizer.decode(ids).encode()))
    if not sizes:
        raise InputError(f"{source.files} holds no sequences: its files have no rows")
    np.save(directory / STARTS, np.array(starts, np.int64))
    np.save(directory / BYTES, np.array(sizes, np.int64))
