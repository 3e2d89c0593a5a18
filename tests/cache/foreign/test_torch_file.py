"""Files as `torch.save` writes them: read where they hold tensors, refused otherwise."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.cache.foreign import torch_file
from jaxdistill.errors import InputError


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "bool", "uint16"])
def test_a_tensor_comes_back_with_its_shape_and_type(torch_save, dtype):
    array = (100 * np.random.default_rng(0).random(size=(2, 3, 4)) * (np.arange(4) % 2)).astype(jnp.dtype(dtype))
    found = torch_file.load(torch_save({"x": [array, array[:1]], "n": 3}))
    np.testing.assert_array_equal(found["x"][0], array)
    np.testing.assert_array_equal(found["x"][1], array[:1])
    assert found["x"][0].dtype == dtype and found["n"] == 3


def test_a_view_is_cut_out_of_its_storage(torch_save, view):
    array = np.arange(24, dtype=np.float32)
    found = torch_file.load(torch_save(view(array, (2, 3), (1, 7), 3)))
    np.testing.assert_array_equal(found, array[3:].reshape(3, 7)[:, :2].T)


class Asks:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_file_that_asks_for_anything_else_is_refused_and_nothing_is_run(torch_save, tmp_path):
    trace = tmp_path / "run"
    with pytest.raises(InputError, match=r"asks for (posix|nt)\.mkdir: only tensors of numbers are read"):
        torch_file.load(torch_save([Asks(os.mkdir, str(trace))]))
    assert not trace.exists()
    with pytest.raises(InputError, match=r"asks for (builtins|__builtin__)\.eval"):
        torch_file.load(torch_save(Asks(eval, "1")))


@pytest.mark.parametrize(("stride", "offset"), [((12, 4, 1), 1), ((20, 4, 1), 0), ((12, 4, 1), -1), ((12, -4, 1), 0)])
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(torch_save, view, stride, offset):
    with pytest.raises(InputError, match="reaches beyond its storage"):
        torch_file.load(torch_save(view(np.zeros(24, np.float32), (2, 3, 4), stride, offset)))


def test_files_that_are_none_are_refused(torch_save):
    array = np.zeros(4, np.float32)
    whole = torch_save(array)
    for data in (b"", b"no archive", whole[: len(whole) // 2], torch_save(array, **{"data/0": b"12345"})):
        with pytest.raises(InputError, match=r"this is no file of torch\.save"):
            torch_file.load(data)
    with pytest.raises(InputError, match="big-endian"):
        torch_file.load(torch_save([], byteorder="big"))
