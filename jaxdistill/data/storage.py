"""Where prepared data lives, and how it gets there: whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from jaxdistill.errors import InputError


def cache_root(cache: str | os.PathLike[str] | None = None) -> Path:
    """The directory of everything prepared: the argument, else $JAXDISTILL_CACHE, else ~/.cache/jaxdistill."""
    return Path(cache or os.environ.get("JAXDISTILL_CACHE") or "~/.cache/jaxdistill").expanduser()


def content_key(identity: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a mapping of plain values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; an unreadable file is an InputError."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def new_directory(target: Path) -> Generator[Path, None, None]:
    """A directory to fill, which becomes `target` in one rename when the block ends without an error.

    Readers see the whole directory or none. Where two processes build the same target, the first to finish wins and the
    other throws its own copy away; a killed one leaves a `.partial` directory that nothing reads. A full disk or a
    forbidden directory raises InputError and leaves nothing.
    """
    partial = _partial(target)
    with _write_errors(target):
        try:
            partial.mkdir(parents=True)
            yield partial
            for file in partial.iterdir():
                _to_disk(file)
            _rename_unless_there(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_file(target: Path, content: bytes) -> None:
    """Write one file whole, through a temporary name beside it; InputError where the disk does not allow it."""
    partial = _partial(target)
    with _write_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            _to_disk(partial)
            os.replace(partial, target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")


def _to_disk(file: Path) -> None:
    # The rename must not reach the disk before the bytes do, or a power cut could leave a whole name on half a file.
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_unless_there(partial: Path, target: Path) -> None:
    try:
        os.rename(partial, target)
    except OSError:
        if not target.is_dir():
            raise


@contextlib.contextmanager
def _write_errors(target: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot write {target}: {reason}; free some space or write elsewhere (JAXDISTILL_CACHE moves the cache)"
        ) from error
