"""Tensors from what `torch.save` wrote, without torch, and without running anything that the file asks for.

The file is a zip archive: a pickle, and the bytes of every storage. The pickle may name the functions that put tensors
together, and types of numbers; what stands for them here builds plain records, from which the arrays are made
afterwards. Whatever else it names is refused.
"""

import collections
import io
import math
import pickle
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdistill.errors import InputError

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
"""Older types of numbers have a storage of their own; newer ones lie in an untyped one and are named by the tensor."""

DTYPES = ("uint16", "uint32", "uint64")


class Storage(NamedTuple):
    """A storage by its name in the archive; `dtype` is None where the tensor says it."""

    dtype: str | None
    key: str


class Tensor(NamedTuple):
    """A view of a storage, as the pickle describes it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


def load(data: bytes) -> Any:
    """The object of a file: containers as they are, tensors as arrays.

    Raises InputError where it is no such file, is damaged, or asks for anything but tensors of numbers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            (listing,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = listing.removesuffix("data.pkl")
            if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
                raise InputError("a file of torch.save has big-endian numbers: write it on a little-endian machine")
            found = _Unpickler(io.BytesIO(archive.read(listing))).load()
            return _arrays(found, lambda key: archive.read(f"{root}data/{key}"))
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"this is no file of torch.save: {type(error).__name__}: {error}") from error


class _Unpickler(pickle.Unpickler):
    """Knows tensors, their storages and types, and ordered dicts; nothing it can be made to call does anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return _tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module in ("torch", "torch.storage") and name == "UntypedStorage":
            return None
        if module == "torch" and name in DTYPES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise InputError(f"a file of torch.save asks for {module}.{name}: only tensors of numbers are read")

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(key, str):
            raise InputError(f"a file of torch.save refers to {pid!r}: only storages are known")
        return Storage(dtype, key)


def _tensor(
    storage: Storage, offset: int, size: Any, stride: Any, requires_grad: bool, hooks: Any, dtype: str | None = None
) -> Tensor:
    if (dtype := storage.dtype or dtype) not in (*STORAGES.values(), *DTYPES):
        raise InputError(f"a file of torch.save has a tensor of {dtype}: only numbers of {', '.join(DTYPES)} and older")
    return Tensor(storage, offset, tuple(size), tuple(stride), dtype)


def _arrays(found: Any, read: Any) -> Any:
    """The same containers, with an array for every tensor."""
    if isinstance(found, Tensor):
        numbers = np.frombuffer(read(found.storage.key), jnp.dtype(found.dtype))
        last = found.offset + sum((n - 1) * step for n, step in zip(found.size, found.stride, strict=True))
        if min(found.offset, *found.stride, 0) < 0 or (math.prod(found.size) and last >= len(numbers)):
            raise InputError("a file of torch.save has a tensor that reaches beyond its storage: it is damaged")
        step = [numbers.itemsize * n for n in found.stride]
        return np.lib.stride_tricks.as_strided(numbers[found.offset :], found.size, step).copy()
    if isinstance(found, dict):
        return {key: _arrays(value, read) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [_arrays(value, read) for value in found]
    return found
