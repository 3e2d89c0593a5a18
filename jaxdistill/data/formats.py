"""Documents out of files: one reader a format, each refusing what it cannot read whole.

A reader takes a path and the name of the text field, and yields one `str` a document, in the order of the file.
"""

import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxdistill.errors import InputError


def find(path: str) -> list[Path]:
    """The readable files that a file, a directory (searched to its depth) or a glob stands for, sorted by their paths.

    Files of other formats below a directory or in a glob are passed over. InputError where nothing is left.
    """
    root = Path(path).expanduser()
    if root.is_file():
        reader(root)
        return [root]
    is_pattern = glob.has_magic(path) and not root.exists()
    if not is_pattern and not (path and root.is_dir()):
        raise InputError(f"{path!r} does not exist: give a file, a directory or a glob of {', '.join(READERS)} files")
    found = map(Path, glob.glob(str(root), recursive=True)) if is_pattern else root.rglob("*")
    files = sorted((file for file in found if _suffix(file) and file.is_file()), key=Path.as_posix)
    if not files:
        raise InputError(f"{path} holds no file that can be read: the formats are {', '.join(READERS)}")
    return files


def reader(path: Path) -> Callable[[Path, str], Iterator[str]]:
    """The reader of a file, chosen by its suffix; InputError for a suffix that has none."""
    suffix = _suffix(path)
    if suffix is None:
        raise InputError(f"{path} has no known format: the name must end in one of {', '.join(READERS)}")
    return READERS[suffix]


def read(path: Path, text_key: str) -> Iterator[str]:
    """The documents of one file; InputError that names the file, and the line or row, of what cannot be read."""
    try:
        yield from reader(path)(path, text_key)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def read_text(path: Path, text_key: str) -> Iterator[str]:
    """The whole file as one document, its line ends untouched."""
    yield _decode(path.read_bytes(), str(path))


def read_json_lines(path: Path, text_key: str) -> Iterator[str]:
    """One JSON object a line, the document under `text_key`; gzip where the name ends in .gz."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as lines:
        try:
            for number, line in enumerate(lines, 1):
                yield _json_text(line, text_key, f"{path}:{number}")
        except (EOFError, zlib.error) as error:
            raise InputError(f"{path} is a broken gzip file: {error}") from error


def read_parquet(path: Path, text_key: str) -> Iterator[str]:
    """The column `text_key`, a batch of rows at a time."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(f"reading {path} needs pyarrow: pip install 'jaxdistill[parquet]'") from error
    try:
        with pq.ParquetFile(path) as table:
            if text_key not in table.schema_arrow.names:
                columns = ", ".join(table.schema_arrow.names)
                raise InputError(f"{path} has no column {text_key!r} for text_key to name: its columns are {columns}")
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[text_key]):
                for value in batch.column(0).to_pylist():
                    yield _string(value, text_key, f"{path}, row {row}")
                    row += 1
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a readable parquet file: {error}") from error


def read_array_record(path: Path, text_key: str) -> Iterator[str]:
    """One UTF-8 document a record."""
    from array_record.python.array_record_module import ArrayRecordReader  # ty: ignore[import-not-found]

    try:
        records = ArrayRecordReader(str(path))
        count = records.num_records()
        for start in range(0, count, 1024):
            block = records.read(start, min(start + 1024, count))
            yield from (_decode(record, f"{path}, record {start + i}") for i, record in enumerate(block))
    except (RuntimeError, IndexError) as error:
        raise InputError(f"{path} is not a readable array_record file: {error}") from error
    if count == 0:  # the library opens a file of another format as one without records
        raise InputError(f"{path} is empty or not an array_record file")


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_json_lines,
    ".jsonl.gz": read_json_lines,
    ".parquet": read_parquet,
    ".array_record": read_array_record,
}


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in READERS if path.name.endswith(suffix)), None)


def _decode(text: bytes, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 text: {error.reason} at byte {error.start}; convert it first"
        ) from error


def _json_text(line: bytes, text_key: str, where: str) -> str:
    try:
        record = json.loads(_decode(line, where))
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(record, dict) or text_key not in record:
        raise InputError(f"{where} has no key {text_key!r}: name the field that holds the text with text_key")
    return _string(record[text_key], text_key, where)


def _string(value: object, text_key: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} holds a {type(value).__name__} under {text_key!r} where text was expected")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no text holds
        raise InputError(f"{where} holds half of a surrogate pair, which is not text: repair that record") from error
    return value
