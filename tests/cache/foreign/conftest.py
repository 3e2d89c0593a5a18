"""`torch.save` without torch: its archive, from the description of the format."""

import collections
import io
import pickle
import sys
import types
import zipfile
from typing import NamedTuple

import numpy as np
import pytest

STORAGES = {"float16": "HalfStorage", "float32": "FloatStorage", "bool": "BoolStorage", "bfloat16": "BFloat16Storage"}
NAMES = {
    "torch": (*STORAGES.values(), "uint16"),
    "torch.storage": ("UntypedStorage",),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_tensor_v3"),
}


class Storage(NamedTuple):
    """What stands in the pickle for the bytes of a storage."""

    kind: type
    key: str
    numel: int


class View(NamedTuple):
    """A tensor with a shape, strides and an offset of its own over the numbers of an array."""

    array: np.ndarray
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Pickler(pickle.Pickler):
    """Writes arrays and views as torch writes tensors: types older than 2.3 by their storage, later ones by name."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = []

    def persistent_id(self, obj):
        return ("storage", obj.kind, obj.key, "cpu", obj.numel) if isinstance(obj, Storage) else None

    def reducer_override(self, obj):
        if isinstance(obj, np.ndarray):
            obj = View(obj, obj.shape, tuple(step // obj.itemsize for step in obj.strides), 0)
        if not isinstance(obj, View):
            return NotImplemented
        torch, name, key = sys.modules["torch"], obj.array.dtype.name, str(len(self.storages))
        self.storages.append(obj.array.tobytes())
        rest = (obj.offset, obj.shape, obj.stride, False, collections.OrderedDict())
        if name in STORAGES:
            storage = Storage(getattr(torch, STORAGES[name]), key, obj.array.size)
            return sys.modules["torch._utils"]._rebuild_tensor_v2, (storage, *rest)
        storage = Storage(sys.modules["torch.storage"].UntypedStorage, key, obj.array.nbytes)
        return sys.modules["torch._utils"]._rebuild_tensor_v3, (storage, *rest, getattr(torch, name))


@pytest.fixture
def view():
    """view(array, shape, stride, offset), in numbers and not in bytes."""
    return View


@pytest.fixture
def torch_save(monkeypatch):
    """torch_save(obj, **records) -> bytes; arrays are tensors, and `records` replace those of the archive."""
    for module, members in NAMES.items():
        made = types.ModuleType(module)
        for member in members:
            setattr(made, member, type(member, (), {"__module__": module, "__qualname__": member}))
        monkeypatch.setitem(sys.modules, module, made)

    def save(obj, **records) -> bytes:
        listing, file = io.BytesIO(), io.BytesIO()
        pickler = Pickler(listing)
        pickler.dump(obj)
        content = {"data.pkl": listing.getvalue(), "byteorder": "little"}
        content |= {f"data/{key}": data for key, data in enumerate(pickler.storages)} | {"version": "3\n"} | records
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in content.items():
                archive.writestr(f"archive/{name}", data)
        return file.getvalue()

    return save
