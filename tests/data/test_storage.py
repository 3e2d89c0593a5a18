import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdistill.data.storage import cache_root, content_key, file_hash, new_directory, write_file
from jaxdistill.errors import InputError


def test_cache_root_is_the_argument_then_the_environment_then_home(monkeypatch):
    monkeypatch.setenv("JAXDISTILL_CACHE", "/from/environment")
    assert cache_root("/given") == Path("/given")
    assert cache_root() == Path("/from/environment")
    monkeypatch.delenv("JAXDISTILL_CACHE")
    assert cache_root() == Path.home() / ".cache" / "jaxdistill"


def test_content_key_depends_on_values_and_not_on_their_order():
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert content_key({"a": 1, "b": [2]}) != content_key({"a": 1, "b": [3]})


def test_file_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x").startswith("ba7816bf8f01cfea")  # FIPS 180-4, example "abc"
    with pytest.raises(InputError, match=r"cannot read .*: No such file"):
        file_hash(tmp_path / "none")


def test_directory_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "deep" / "made"
    with new_directory(target) as partial:
        (partial / "file").write_text("content")
        inode = (partial / "file").stat().st_ino
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert (target / "file").stat().st_ino == inode  # one rename, and no copy that could be seen half done
    assert os.listdir(target.parent) == ["made"]


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyError), new_directory(tmp_path / "made") as partial:
        (partial / "file").write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_the_first_of_two_builders_wins_and_the_other_leaves_no_trace(tmp_path):
    target = tmp_path / "made"
    with new_directory(target) as slow:
        (slow / "file").write_text("slow")
        with new_directory(target) as fast:
            (fast / "file").write_text("fast")
    assert (target / "file").read_text() == "fast"
    assert os.listdir(tmp_path) == ["made"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(InputError, match=r"cannot write .*file/made: Not a directory; free some space")
    with refused, new_directory(tmp_path / "file" / "made"):
        pass
    with pytest.raises(InputError, match=r"cannot write .*file/made"):
        write_file(tmp_path / "file" / "made", b"")


def test_write_file_replaces_the_whole_file(tmp_path):
    write_file(tmp_path / "new" / "file", b"long content")
    write_file(tmp_path / "new" / "file", b"short")
    assert (tmp_path / "new" / "file").read_bytes() == b"short"
    assert os.listdir(tmp_path / "new") == ["file"]


FULL_DISK = """
import pathlib, resource, sys
from jaxdistill.data.storage import new_directory, write_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (lambda t: write_file(t / "file", bytes(5000)), lambda t: fill(t / "made")):
    def fill(target):
        with new_directory(target) as partial:
            (partial / "file").write_bytes(bytes(5000))
    try:
        write(pathlib.Path(sys.argv[1]))
    except ValueError as error:
        print(type(error).__name__, error)
"""


def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_nothing(tmp_path):
    ran = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=True)
    first, second = ran.stdout.splitlines()
    assert first.startswith(f"InputError cannot write {tmp_path}/file: File too large; free some space")
    assert second.startswith(f"InputError cannot write {tmp_path}/made: File too large; free some space")
    assert os.listdir(tmp_path) == []
