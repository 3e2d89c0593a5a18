"""Where text comes from: a source yields the same documents in the same order, always, and knows its content's hash."""

import dataclasses
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from jaxdistill.data import formats
from jaxdistill.data.storage import content_key, file_hash
from jaxdistill.errors import InputError

SPLITS = ("train", "validation")
TOPICS = "pydoc_data/topics.py"


class Source(Protocol):
    """What a source of text is: a frozen dataclass with these three methods."""

    def documents(self, split: str) -> Iterator[str]:
        """The documents of the split "train" or "validation", in a fixed order."""
        ...

    def fingerprint(self) -> str:
        """SHA-256, in hex, of everything that `documents` depends on."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain facts for the manifest of what is prepared from this source."""
        ...


def check_split(split: str) -> None:
    """InputError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise InputError(f"there is no split {split!r}: the splits are {' and '.join(SPLITS)}")


def share(text: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the text alone, uniform over texts and independent from purpose to purpose."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclasses.dataclass(frozen=True)
class Stdlib:
    """The text that every Python brings along: the sources of its standard library, and its language reference.

    About 11 MB of code and English. One document a file, sorted by relative path, then one a topic of `pydoc_data`;
    about one in twenty is for validation, chosen by its name. Modules outside `sys.stdlib_module_names`, tests and IDLE
    are left out, so that the text depends on the version of Python and hardly on who packaged it. The fingerprint is
    that of the text itself.
    """

    def documents(self, split: str) -> Iterator[str]:
        check_split(split)
        for name, text in _library():
            if text is not None and (share(name, "validation") < 1 / 20) == (split == "validation"):
                yield text

    def fingerprint(self) -> str:
        return content_key(
            {"stdlib": [(name, hashlib.sha256((text or "").encode()).hexdigest()) for name, text in _library()]}
        )

    def describe(self) -> dict[str, Any]:
        texts = [text for _, text in _library()]
        return {
            "source": "stdlib",
            "python": sys.version.split()[0],
            "documents": len(texts),
            "undecodable": texts.count(None),
        }


def _library() -> Iterator[tuple[str, str | None]]:
    """(name, text) of every document of the standard library; the text is None where it is not UTF-8."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(file.relative_to(root).as_posix() for file in _library_files(root))
    if not names:
        raise InputError(f"{root} holds no sources of the standard library: install them, or give Files(path) a text")
    for name in names:
        try:
            yield name, (root / name).read_bytes().decode()
        except UnicodeDecodeError:
            yield name, None
        except OSError as error:
            raise InputError(f"cannot read {root / name}: {error.strerror}") from error
    if (root / TOPICS).is_file():
        from pydoc_data.topics import topics  # the file is one long line of escapes; this is the prose it spells

        yield from ((f"pydoc_data/topics/{topic}", topics[topic]) for topic in sorted(topics))


def _library_files(root: Path) -> Iterator[Path]:
    modules = (root / name for name in sys.stdlib_module_names - {"idlelib"})
    found = (file for module in modules for file in [module.with_name(f"{module.name}.py"), *module.rglob("*")])
    for file in found:
        is_test = not {"test", "tests"}.isdisjoint(file.relative_to(root).parts)
        if file.suffix in (".py", ".txt", ".rst") and file != root / TOPICS and not is_test and file.is_file():
            yield file


@dataclasses.dataclass(frozen=True)
class Files:
    """A user's own text: a file, a directory or a glob of .txt, .md, .jsonl(.gz), .parquet or .array_record files.

    Attributes:
      path: where the text is. A .txt or .md file is one document; the other formats hold one a line, row or record.
      text_key: the JSON key or parquet column that holds the text.
      validation: the fraction of the documents kept for validation. A document's content decides, so that copies of
        one document never stand on both sides.
      validation_path: files for validation in place of that fraction; then all of `path` is for training.
    """

    path: str
    text_key: str = "text"
    validation: float = 0.05
    validation_path: str | None = None

    def __post_init__(self):
        if not 0 < self.validation < 1:
            raise InputError(f"validation={self.validation} must be a fraction of the documents, above 0 and below 1")

    def documents(self, split: str) -> Iterator[str]:
        check_split(split)
        for file in self._files()[split]:
            for text in formats.read(file, self.text_key):
                if self.validation_path is not None or (share(text, "validation") < self.validation) == (
                    split == "validation"
                ):
                    yield text

    def fingerprint(self) -> str:
        contents = {split: [(file.suffix, file_hash(file)) for file in files] for split, files in self._files().items()}
        rule = self.validation if self.validation_path is None else "own files"
        return content_key({"files": contents, "text_key": self.text_key, "validation": rule})

    def describe(self) -> dict[str, Any]:
        return {
            "source": "files",
            "files": {split: [str(file) for file in files] for split, files in self._files().items()},
        }

    def _files(self) -> dict[str, list[Path]]:
        train = formats.find(self.path)
        if self.validation_path is None:
            return {"train": train, "validation": train}
        validation = formats.find(self.validation_path)
        if both := {file.resolve() for file in train} & {file.resolve() for file in validation}:
            raise InputError(f"{min(both)} is in path and in validation_path: take it out of one of them")
        return {"train": train, "validation": validation}
