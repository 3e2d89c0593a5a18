"""Columns on disk are read as they were written, or not at all."""

import json

import numpy as np
import pytest

from jaxdistill.cache.columns import Column
from jaxdistill.cache.store import Store
from jaxdistill.errors import InputError

COLUMNS = {"id": Column("uint32", 300), "number": Column("uint8", 20), "key": Column("uint64", 2)}


def rows(number, seed):
    generator = np.random.default_rng(seed)
    return {n: generator.integers(0, 200, (number, c.width)).astype(c.dtype) for n, c in COLUMNS.items()}


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "cache", COLUMNS, rows=150, shard_rows=64)
    for shard in made.shards:
        made.write(shard, rows(len(made.shard(shard)), shard))
    return made


def test_rows_come_back_in_any_order_also_those_of_a_short_last_shard(store):
    whole = {n: np.concatenate([rows(len(store.shard(s)), s)[n] for s in store.shards]) for n in COLUMNS}
    wanted = np.array([149, 0, 63, 64, 7, 7])
    for name, read in store.read(wanted).items():
        np.testing.assert_array_equal(read, whole[name][wanted])
    assert list(store.verify()) == [0, 1, 2]


def test_the_bytes_depend_on_the_content_alone(store, tmp_path):
    again = Store(tmp_path / "again", COLUMNS, rows=150, shard_rows=64)
    for shard in reversed(again.shards):
        again.write(shard, rows(len(again.shard(shard)), shard))
    assert again.check() == store.check()


def test_a_shard_that_was_never_written_is_an_error_and_not_zeros(tmp_path):
    store = Store(tmp_path, COLUMNS, rows=150, shard_rows=64)
    store.write(0, rows(64, 0))
    with pytest.raises(InputError, match="lacks shard 1 of 3"):
        store.check()
    with pytest.raises(InputError, match="missing"):
        store.read(np.array([0, 100]))


def test_a_row_of_zeros_is_stored_and_read_as_such(tmp_path):
    store = Store(tmp_path, {"id": Column("uint32", 8)}, rows=4, shard_rows=4)
    store.write(0, {"id": np.zeros((4, 8), np.uint32)})
    np.testing.assert_array_equal(store.read(np.arange(4))["id"], 0)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_harm_done_to_a_shard_is_named(store, harm):
    file = store.directory / "columns" / "id" / "c" / "1" / "0"
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
        store.check()  # the size is right
        with pytest.raises(InputError, match="cannot be read"):
            store.read(np.arange(64, 128))
        with pytest.raises(InputError, match=r"is damaged; delete .*000001.json and build"):
            list(store.verify())
        return
    if harm == "truncate":
        file.write_bytes(content[:-10])
    else:
        file.unlink()
    with pytest.raises(InputError, match=r"(has \d+ bytes, not \d+|is missing); delete .*000001.json and build"):
        store.check()


def test_a_damaged_commit_is_named(store):
    (store.directory / "commits" / "000002.json").write_text("{")
    with pytest.raises(InputError, match=r"000002.json is damaged"):
        store.check()
    (store.directory / "commits" / "000002.json").write_text(json.dumps({"files": {"id": {"bytes": 1}}}))
    with pytest.raises(InputError, match="not 1"):
        store.check()


def test_a_full_disk_is_one_sentence(tmp_path):
    store = Store(tmp_path / "file" / "cache", COLUMNS, rows=64, shard_rows=64)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        store.write(0, rows(64, 0))
