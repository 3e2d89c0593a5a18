"""Small texts on disk, for tests of everything that reads them."""

import json
from pathlib import Path

import pytest

from jaxdistill.data import Files


@pytest.fixture
def texts(tmp_path):
    """A function that writes documents to JSON lines and gives the source that reads them back."""

    def write(train: list[str], validation: list[str] = ("held out",), name: str = "texts") -> Files:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        for split, documents in (("train", train), ("validation", validation)):
            lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
            Path(directory / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        return Files(str(directory / "train.jsonl"), validation_path=str(directory / "validation.jsonl"))

    return write
