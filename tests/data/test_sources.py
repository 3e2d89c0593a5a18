import idlelib
import itertools
import sys

import numpy as np
import pytest

from jaxdistill.data import Files, Stdlib
from jaxdistill.data.sources import share
from jaxdistill.errors import InputError


@pytest.fixture(scope="module")
def library():
    return {split: list(Stdlib().documents(split)) for split in ("train", "validation")}


def test_share_is_uniform_and_independent_of_its_purpose():
    first, second = ([share(str(i), purpose) for i in range(4000)] for purpose in ("validation", "part"))
    for values in (first, second):
        assert abs(sum(values) / 4000 - 0.5) < 4 * (1 / 12 / 4000) ** 0.5
    correlation = sum((a - 0.5) * (b - 0.5) for a, b in zip(first, second, strict=True)) / 4000 * 12
    assert abs(correlation) < 4 / 4000**0.5


def test_stdlib_holds_python_and_english(library):
    train = library["train"]
    assert sum(map(len, train)) > 5_000_000
    assert sum("def " in text for text in train) > 300
    assert any('The "with" statement' in text and "def " not in text[:20] for text in train + library["validation"])


def test_stdlib_leaves_out_tests_and_what_others_installed(library):
    texts = set(library["train"] + library["validation"])
    for module in (idlelib, np):
        with open(module.__file__, encoding="utf-8") as file:
            assert file.read() not in texts


def test_stdlib_keeps_one_document_in_twenty_for_validation(library):
    train, validation = (len(library[split]) for split in ("train", "validation"))
    expected, spread = (train + validation) / 20, ((train + validation) * 0.05 * 0.95) ** 0.5
    assert abs(validation - expected) < 4 * spread
    longer = {split: {text for text in texts if len(text) > 500} for split, texts in library.items()}
    assert not longer["train"] & longer["validation"]


def test_stdlib_is_the_same_each_time_and_says_which_python(library):
    assert list(itertools.islice(Stdlib().documents("train"), 50)) == library["train"][:50]
    assert Stdlib().fingerprint() == Stdlib().fingerprint()
    facts = Stdlib().describe()
    assert facts["python"] == sys.version.split()[0]
    assert facts["documents"] == len(library["train"]) + len(library["validation"]) + facts["undecodable"]


def test_stdlib_counts_what_it_cannot_decode_and_does_not_care_where_it_lives(tmp_path, monkeypatch):
    fingerprints = []
    for place in ("here", "there/deep"):
        root = tmp_path / place
        for name, content in {
            "json/decoder.py": b"x = 1\n",
            "ast.py": b"y = 2\n",
            "csv.py": b"\xff",
            "foreign.py": b"z",
            "json/tests/test_it.py": b"z",
            "site-packages/abc.py": b"z",
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        monkeypatch.setattr("sysconfig.get_path", lambda _, root=root: str(root))
        both = [*Stdlib().documents("train"), *Stdlib().documents("validation")]
        assert sorted(both) == ["x = 1\n", "y = 2\n"]
        assert Stdlib().describe()["undecodable"] == 1
        fingerprints.append(Stdlib().fingerprint())
    assert fingerprints[0] == fingerprints[1]
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "empty"))
    with pytest.raises(InputError, match="holds no sources of the standard library: install them"):
        Stdlib().fingerprint()


def write(tmp_path, documents):
    for i, text in enumerate(documents):
        (tmp_path / f"{i:04}.txt").write_text(text)
    return Files(str(tmp_path), validation=0.2)


def test_files_divide_into_two_splits_by_content(tmp_path):
    texts = [f"document {i}" for i in range(300)]
    source = write(tmp_path, texts + texts[:100])
    train, validation = (list(source.documents(split)) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(texts + texts[:100])
    assert not set(train) & set(validation)
    assert abs(len(set(validation)) - 60) < 4 * (300 * 0.2 * 0.8) ** 0.5
    assert train == [text for text in texts + texts[:100] if text in set(train)]


def test_files_for_validation_of_their_own_leave_all_of_path_for_training(texts):
    source = texts(["a", "b", "c"], ["d", "e"])
    assert list(source.documents("train")) == ["a", "b", "c"]
    assert list(source.documents("validation")) == ["d", "e"]


def test_a_file_on_both_sides_is_refused(tmp_path):
    write(tmp_path, ["a", "b"])
    source = Files(str(tmp_path), validation_path=str(tmp_path / "0001.txt"))
    with pytest.raises(InputError, match=r"0001\.txt is in path and in validation_path: take it out of one"):
        list(source.documents("train"))


def test_files_fingerprint_follows_content_and_rule_and_not_place(tmp_path, texts):
    same = texts(["a", "b"], name="here"), texts(["a", "b"], name="there")
    assert same[0].fingerprint() == same[1].fingerprint()
    others = texts(["a", "c"], name="other"), texts(["a", "b"], ["other"], name="held")
    divided = [Files(same[0].path, validation=fraction) for fraction in (0.1, 0.2)]
    keyed = Files(same[0].path, text_key="body", validation=0.1)
    assert len({source.fingerprint() for source in (same[0], *others, *divided, keyed)}) == 6


def test_unusable_settings_are_refused(tmp_path):
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(InputError, match="must be a fraction of the documents, above 0 and below 1"):
            Files(str(tmp_path), validation=fraction)
    for source in (Stdlib(), write(tmp_path, ["a"])):
        with pytest.raises(InputError, match="there is no split 'test': the splits are train and validation"):
            list(source.documents("test"))
