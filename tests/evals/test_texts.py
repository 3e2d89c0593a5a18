"""Further text as windows: every token but the first of each document is a label once."""

import numpy as np
import pytest

from jaxdistill.data.tokenizers import ByteTokenizer
from jaxdistill.errors import InputError
from jaxdistill.evals.texts import of_files


def test_all_documents_of_the_files_are_there_once(tmp_path):
    texts = [f"document {number} " + "é" * number for number in range(40)]
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{one}"}}\n' for one in texts), encoding="utf-8")
    text = of_files(str(tmp_path / "texts.jsonl"), ByteTokenizer(), 16)
    windows = text.windows
    ends = np.flatnonzero(windows.tokens_T == 256)
    found = [ByteTokenizer().decode(part) for part in np.split(windows.tokens_T, ends + 1)[:-1]]
    assert sorted(found) == sorted(texts)
    sizes = [len(one.encode()) for one in texts]
    assert text.bytes_per_token == sum(sizes) / (sum(sizes) + len(texts))
    assert windows.length == 16
    assert text.number == len(windows)


def test_windows_are_spread_evenly_and_the_last_batch_is_filled_up(tmp_path):
    (tmp_path / "text.txt").write_text("".join(chr(97 + number % 26) for number in range(159)))
    text = of_files(str(tmp_path / "text.txt"), ByteTokenizer(), 16)
    assert (text.number, text.at_most(None).number, text.at_most(99).number) == (10, 10, 10)
    made = list(text.at_most(5).batches(4))
    assert [batch.tokens_BL.shape for batch in made] == [(4, 16)] * 2
    found = np.concatenate([batch.tokens_BL for batch in made])
    np.testing.assert_array_equal(found[:5], [text.windows.tokens_T[start : start + 16] for start in range(0, 160, 32)])
    np.testing.assert_array_equal(made[1].weight_BL[1:], 0)


def test_files_without_text_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="holds no text"):
        of_files(str(tmp_path / "empty.txt"), ByteTokenizer(), 16)
    with pytest.raises(InputError, match="none"):
        of_files(str(tmp_path / "none.txt"), ByteTokenizer(), 16)
