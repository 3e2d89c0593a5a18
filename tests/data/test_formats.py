import contextlib
import gzip
import json
import os
import tempfile
from pathlib import Path

import pytest

from jaxdistill.data.formats import find, read
from jaxdistill.errors import InputError

NASTY = ["a\tb\r\nc  d\n", "", "🙂👍🏽 e\u0301 \u2581 \ufeff", "a\0b"]


def write_parquet(file, columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file)


def write_array_record(file, records):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def json_lines(documents):
    return "".join(json.dumps({"text": text, "id": 0}) + "\n" for text in documents).encode()


def documents(file, text_key="text"):
    return list(read(file, text_key))


def test_a_text_file_is_one_document_to_the_byte(tmp_path):
    for text in NASTY:
        (tmp_path / "a.txt").write_bytes(text.encode())
        assert documents(tmp_path / "a.txt") == [text]


def test_json_lines_plain_and_gzipped_give_every_document(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(NASTY))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(NASTY)))
    assert documents(tmp_path / "a.jsonl") == documents(tmp_path / "a.jsonl.gz") == NASTY


def test_parquet_and_array_record_give_every_document_over_many_blocks(tmp_path):
    many = [f"{text} {i}" for i in range(700) for text in NASTY]
    write_parquet(tmp_path / "a.parquet", {"body": many, "id": list(range(len(many)))})
    write_array_record(tmp_path / "a.array_record", [text.encode() for text in many])
    assert documents(tmp_path / "a.parquet", "body") == many
    assert documents(tmp_path / "a.array_record") == many


def test_find_takes_a_file_a_directory_or_a_glob_and_sorts(tmp_path):
    for name in ("b.txt", "a/z.md", "a/y.jsonl", "a/picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert find(str(tmp_path)) == [tmp_path / "a/y.jsonl", tmp_path / "a/z.md", tmp_path / "b.txt"]
    assert find(str(tmp_path / "a" / "*")) == [tmp_path / "a/y.jsonl", tmp_path / "a/z.md"]
    assert find(str(tmp_path / "**" / "*.txt")) == [tmp_path / "b.txt"]
    assert find(str(tmp_path / "b.txt")) == [tmp_path / "b.txt"]


def test_a_name_with_brackets_is_a_name_where_it_exists(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert find(str(tmp_path / "a[1].txt")) == [tmp_path / "a[1].txt"]


def test_no_path_is_not_the_working_directory():
    with pytest.raises(InputError, match="'' does not exist"):
        find("")


def test_find_refuses_what_is_not_there_or_not_text(tmp_path):
    (tmp_path / "picture.png").write_text("")
    for path, sentence in {
        "none": "none' does not exist: give a file, a directory or a glob",
        "*.txt": r"\*.txt holds no file that can be read: the formats are .txt, .md",
        "": "holds no file that can be read",
        "picture.png": "picture.png has no known format: the name must end in one of .txt",
    }.items():
        with pytest.raises(InputError, match=sentence):
            find(str(tmp_path / path))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"abc\xff", r"a.txt is not UTF-8 text: invalid start byte at byte 3; convert it first"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a.jsonl:2 is not JSON: Expecting value at column"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"}\n', r"a.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a.jsonl:1 is not UTF-8 text"),
        (
            "a.jsonl",
            b'{"body": "a"}\n',
            r"a.jsonl:1 has no key 'text': name the field that holds the text with text_key",
        ),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1 has no key 'text'"),
        ("a.jsonl", b'{"text": 3}\n', r"a.jsonl:1 holds a int under 'text' where text was expected"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', r"a.jsonl:1 holds half of a surrogate pair"),
        ("a.jsonl.gz", b"plain", r"cannot read .*a.jsonl.gz: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(json_lines(["a" * 99] * 99), mtime=0)[:-20], r"a.jsonl.gz is a broken gzip file"),
        ("a.parquet", b"PAR1 and no more", r"a.parquet"),
        ("a.array_record", b"x" * 100, r"a.array_record is empty or not an array_record file"),
        ("a.array_record", b"", r"a.array_record is empty or not an array_record file"),
    ],
    ids=[
        "text: not utf-8",
        "jsonl: cut line",
        "jsonl: blank line",
        "jsonl: not utf-8",
        "jsonl: other key",
        "jsonl: no object",
        "jsonl: number",
        "jsonl: half surrogate",
        "gzip: plain",
        "gzip: cut",
        "parquet: cut",
        "array_record: other format",
        "array_record: empty",
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        documents(tmp_path / name)


def test_a_parquet_file_without_the_column_or_with_a_null_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"body": ["a", None], "id": [1, 2]})
    with pytest.raises(InputError, match="no column 'text' for text_key to name: its columns are body, id"):
        documents(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet, row 1 holds a NoneType under 'body'"):
        documents(tmp_path / "a.parquet", "body")
    with pytest.raises(InputError, match=r"a\.parquet, row 0 holds a int under 'id'"):
        documents(tmp_path / "a.parquet", "id")


def test_a_damaged_parquet_or_array_record_file_is_named(tmp_path):
    many = [f"document {i}" for i in range(3000)]
    write_parquet(tmp_path / "a.parquet", {"text": many})
    write_array_record(tmp_path / "a.array_record", [text.encode() for text in many])
    for name, at in (("a.parquet", 100), ("a.array_record", 20_000)):
        content = bytearray((tmp_path / name).read_bytes())
        content[at : at + 200] = b"z" * 200
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            documents(tmp_path / name)


def test_an_array_record_that_is_not_text_is_named(tmp_path):
    write_array_record(tmp_path / "a.array_record", [b"fine", b"\xff"])
    with pytest.raises(InputError, match=r"a.array_record, record 1 is not UTF-8 text"):
        documents(tmp_path / "a.array_record")


def test_a_forbidden_file_is_named():
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as restore:
        file = Path(directory) / "a.txt"
        file.write_text("secret")
        file.chmod(0)
        os.chmod(directory, 0o755)
        if os.geteuid() == 0:  # root may read everything, so the test stops being root
            os.seteuid(65534)
            restore.callback(os.seteuid, 0)
        with pytest.raises(InputError, match=r"cannot read .*a\.txt: Permission denied"):
            documents(file)
