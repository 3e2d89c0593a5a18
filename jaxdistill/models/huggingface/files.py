"""Safetensors files: one, or shards with an index. Tensors are read one at a time and nothing stays mapped."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.models.huggingface.attributes import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies, and what its file says of it; `dtype` as safetensors writes it."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Its values. The file is mapped for as long as this takes."""
        with _open(self.file) as opened:
            return opened.get_tensor(self.name)


def list_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name. InputError for a missing or truncated file, or one not as indexed."""
    index = directory / INDEX
    if not index.is_file():
        if not (directory / SINGLE).is_file():
            raise InputError(f"{directory} holds no {SINGLE} and no {INDEX}; other formats are not read")
        return _tensors_of(directory / SINGLE)
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict):
        raise InputError(f"{index} has no weight_map: download it again")
    found: dict[str, Tensor] = {}
    for file in sorted(set(where.values())):
        if not (directory / file).is_file():
            raise InputError(f"{directory / file} is missing, which {INDEX} names: download it")
        found |= _tensors_of(directory / file)
    if differ := sorted(set(found) ^ set(where)):
        raise InputError(f"{index} and its shards do not hold the same tensors ({differ[0]}): download them again")
    return found


def _tensors_of(file: Path) -> dict[str, Tensor]:
    with _open(file) as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {name: Tensor(name, file, p.get_dtype(), tuple(p.get_shape())) for name, p in parts.items()}


def _open(file: Path) -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise InputError("reading a checkpoint needs a package: pip install 'jaxdistill[hf]'") from error
    try:
        return safetensors.safe_open(file, framework="numpy")
    except safetensors.SafetensorError as error:
        raise InputError(f"{file} is damaged or cut short ({error}): download it again") from error


class ShardWriter:
    """Writes tensors to files of at most `limit` bytes each, and the index where there are several.

    Names of shards count them, so files carry provisional names until `finish` knows how many there are.
    """

    def __init__(self, directory: Path, limit: int):
        self._directory, self._limit = directory, limit
        self._pending: dict[str, np.ndarray] = {}
        self._bytes = self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, value: np.ndarray) -> None:
        """Take one tensor; a full shard is written."""
        if self._pending and self._bytes + value.nbytes > self._limit:
            self._flush()
        self._pending[name] = value
        self._bytes += value.nbytes

    def _flush(self) -> None:
        from safetensors.numpy import save_file

        save_file(self._pending, self._provisional(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._total += self._bytes
        self._pending, self._bytes = {}, 0

    def _provisional(self, number: int) -> Path:
        return self._directory / f"shard-{number}.safetensors"

    def finish(self) -> None:
        """Write what is left, and give the files their names."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._provisional(0).rename(self._directory / SINGLE)
            return
        where: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._provisional(number).rename(self._directory / file)
            where |= dict.fromkeys(names, file)
        content = {"metadata": {"total_size": self._total}, "weight_map": where}
        (self._directory / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
