"""Megatron-LM's cached teacher logits: tar shards of compressed tensors (github.com/NVIDIA/Megatron-LM, pull 5019).

    cp0_dp<rank>__<last iteration>.tar     the shards of one data-parallel rank
        _meta.json                         first: a hash of what decides the order of the samples
        <iteration>.pt.zst                 zstandard around torch.save of a list for each of three names: one tensor
                                           [sequence, batch, k] a micro-batch

    values        log-probabilities, the most probable first; -1000 in entries that hold nothing
    indices_low   the low 16 bits of the ids
    bit_17        their 17th bit

The cache holds no tokens: its order is that of the run that wrote it. Rank d of n has the micro-batches d, d + n, ...
"""

import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.cache.foreign import torch_file
from jaxdistill.cache.foreign.sequence import Sequence
from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.targets import NO_ID

META = "_meta.json"
SHARD = re.compile(r"cp(\d+)_dp(\d+)__(\d+)\.tar")
MEMBER = re.compile(r"(\d+)\.pt\.zst")
NOTHING = -1e3  # the log-probability of an entry that holds nothing, exact in every type it is stored in


def read(directory: str | Path) -> Iterator[Sequence]:
    """The sequences of a cache in the order of the training run; `tokens` is None.

    Raises:
      InputError: pyarrow is missing, a shard is damaged, shards belong to several runs, ranks differ in what they hold,
        or sequences are divided among context-parallel ranks.
    """
    ranks = _ranks(Path(directory))
    streams = [_iterations(shards) for shards in ranks]
    for parts in itertools.zip_longest(*streams, fillvalue=(None, [])):
        if len({(iteration, len(micro_batches)) for iteration, micro_batches in parts}) > 1:
            numbers = [iteration for iteration, _ in parts]
            raise InputError(f"{directory}: its ranks differ (iterations {numbers}): copy all shards of all ranks")
        for of_ranks in zip(*(micro_batches for _, micro_batches in parts), strict=True):
            for micro_batch in of_ranks:
                yield from _sequences(*micro_batch)


def _ranks(directory: Path) -> list[list[Path]]:
    """The shards of every data-parallel rank, in the order of their iterations."""
    found: dict[int, dict[int, Path]] = {}
    for path in directory.glob("*.tar"):
        if match := SHARD.fullmatch(path.name):
            context, rank, iteration = map(int, match.groups())
            if context:
                raise InputError(f"{directory} has sequences divided among context-parallel ranks: read it where cp=1")
            found.setdefault(rank, {})[iteration] = path
    if sorted(found) != list(range(len(found))) or not found:
        raise InputError(f"{directory} has shards of the ranks {sorted(found)}: all of them are needed, from 0 on")
    ranks = [[path for _, path in sorted(found[rank].items())] for rank in sorted(found)]
    if len(hashes := {_hash(path) for shards in ranks for path in shards}) > 1:
        raise InputError(f"{directory} mixes shards of several runs: their {META} have the hashes {sorted(hashes)}")
    return ranks


def _hash(path: Path) -> str:
    name, data = next(_members(path), ("nothing", b""))
    if name != META:
        raise InputError(f"{path} begins with {name}, not with {META}: it was not written by Megatron-LM")
    try:
        return str(json.loads(data)["hash"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} has a damaged {META}: {error}") from error


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of a tar, one after another."""
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                if (file := tar.extractfile(member)) is not None:
                    yield member.name, file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _iterations(shards: list[Path]) -> Iterator[tuple[int, list[tuple[np.ndarray, ...]]]]:
    """(iteration, its micro-batches) of a rank, ascending."""
    before = -1
    for path in shards:
        for name, data in _members(path):
            if (match := MEMBER.fullmatch(name)) is None:
                continue
            iteration = int(match.group(1))
            if iteration <= before:
                raise InputError(f"{path} holds iteration {iteration} after {before}: a run was written over another")
            before = iteration
            yield iteration, _micro_batches(f"{name} of {path}", data)


def _micro_batches(what: str, data: bytes) -> list[tuple[np.ndarray, ...]]:
    try:
        tensors = torch_file.load(_decompress(data, what))
        parts = [tensors[name] for name in ("values", "indices_low", "bit_17")]
        found = list(zip(*parts, strict=True))
        if any(x.ndim != 3 or x.shape != values.shape for values, *others in found for x in (values, *others)):
            raise ValueError("tensors of other shapes than [sequence, batch, k]")
        return found
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{what} holds no log-probabilities: {error}") from error


def _decompress(data: bytes, what: str) -> bytes:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise InputError(f"reading {what} needs pyarrow: pip install 'jaxdistill[parquet]'") from error
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            return stream.read()
    except OSError as error:
        raise InputError(f"damaged, {error}") from error


def _sequences(values: Any, low: Any, high: Any) -> Iterator[Sequence]:
    """The sequences of a micro-batch, [L, B, S] each."""
    logp_LBS = values.astype(np.float32)
    id_LBS = low.astype(np.int32) | high.astype(np.int32) << 16
    is_held_LBS = logp_LBS != NOTHING
    id_LBS, logp_LBS = np.where(is_held_LBS, id_LBS, NO_ID), np.where(is_held_LBS, logp_LBS, np.float32(MASKED))
    for number in range(values.shape[1]):
        yield Sequence(None, id_LBS[:, number].astype(np.int32), logp_LBS[:, number])
