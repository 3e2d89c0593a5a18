import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxdistill.data import Files
from jaxdistill.data.corpus import tokenize
from jaxdistill.data.tokenizers import ByteTokenizer
from jaxdistill.errors import InputError

EOS = 256
MANY = [f"document {i} " + "é" * (i % 7) for i in range(400)]


def made(source, cache, split="train", **options):
    return tokenize(source, source.fingerprint(), ByteTokenizer(), split, cache=cache, quiet=True, **options)


def documents(corpus):
    """The documents that the tokens spell."""
    *texts, rest = " ".join(map(str, corpus.tokens_T)).split(str(EOS))
    assert rest == ""
    return [bytes(map(int, text.split())).decode() for text in texts]


def test_tokens_are_every_document_with_its_end(texts, tmp_path):
    corpus = made(texts(["ab", "", "é"]), tmp_path)
    assert corpus.tokens_T.tolist() == [97, 98, EOS, EOS, 0xC3, 0xA9, EOS]
    assert corpus.tokens_T.dtype == np.uint16
    counts = {name: corpus.manifest[name] for name in ("documents", "tokens", "bytes", "split")}
    assert counts == {"documents": 3, "tokens": 7, "bytes": 4, "split": "train"}
    assert corpus.manifest["source"]["source"] == "files"


def test_a_large_vocabulary_takes_four_bytes(texts, tmp_path):
    class Wide(ByteTokenizer):
        vocab_size = 2**16 + 1
        eos_id = 2**16
        fingerprint = "wide"

    source = texts(["ab"])
    corpus = tokenize(source, source.fingerprint(), Wide(), "train", cache=tmp_path, quiet=True)
    assert corpus.tokens_T.tolist() == [97, 98, 2**16]


def test_parts_are_disjoint_and_together_everything(texts, tmp_path):
    source = texts([*MANY, *MANY[:50]])
    parts = [documents(made(source, tmp_path, part=(i, 3))) for i in range(3)]
    assert sorted(itertools.chain(*parts)) == sorted([*MANY, *MANY[:50]])
    for i in range(3):
        assert not set(parts[i]) & set(parts[i - 1])
        assert abs(len(set(parts[i])) - 400 / 3) < 4 * (400 * 2 / 9) ** 0.5


def test_parts_are_even_in_what_a_fraction_for_validation_leaves(texts, tmp_path):
    source = Files(texts(MANY).path, validation=0.2)
    train = len(list(source.documents("train")))
    for i in range(5):
        assert abs(made(source, tmp_path, part=(i, 5)).manifest["documents"] - train / 5) < 4 * (train * 0.16) ** 0.5


def test_the_second_time_nothing_is_read(texts, tmp_path):
    source = texts(MANY)
    fingerprint = source.fingerprint()
    first = made(source, tmp_path)
    os.remove(source.path)
    again = tokenize(source, fingerprint, ByteTokenizer(), "train", cache=tmp_path)
    np.testing.assert_array_equal(first.tokens_T, again.tokens_T)


def test_another_text_split_part_or_tokenizer_is_another_corpus(texts, tmp_path):
    class Other(ByteTokenizer):
        fingerprint = "other"

    source = texts(MANY, MANY)
    for split, part in (("train", (0, 1)), ("validation", (0, 1)), ("train", (0, 2)), ("train", (1, 2))):
        made(source, tmp_path, split, part=part)
    made(texts(MANY[:-1], name="shorter"), tmp_path)
    tokenize(source, source.fingerprint(), Other(), "train", cache=tmp_path, quiet=True)
    assert len(os.listdir(tmp_path / "tokens")) == 6


def test_nothing_is_printed_where_nobody_watches(texts, tmp_path, capfd):
    source = texts(MANY)
    tokenize(source, source.fingerprint(), ByteTokenizer(), "train", cache=tmp_path, quiet=False)
    assert capfd.readouterr() == ("", "")


def test_a_split_or_part_without_documents_is_refused(texts, tmp_path):
    with pytest.raises(InputError, match=r"the validation split of Files\(.*\) has no documents: give more text"):
        made(texts(["a"], []), tmp_path, "validation")
    with pytest.raises(InputError, match=r"part \d of 9 of the train split of Files\(.*\) has no documents"):
        for i in range(9):
            made(texts(["a"]), tmp_path, part=(i, 9))
    assert not [name for name in os.listdir(tmp_path / "tokens") if name.endswith(".partial")]


def test_a_tokenizer_that_reads_its_end_in_the_text_is_refused(texts, tmp_path):
    class Naive(ByteTokenizer):
        eos_id = ord("b")

    source = texts(["abc"])
    with pytest.raises(InputError, match="reads its end of document in the text 'abc': mark it as special"):
        tokenize(source, source.fingerprint(), Naive(), "train", cache=tmp_path)
    assert os.listdir(tmp_path / "tokens") == []


def damage(directory, how):
    tokens, manifest = directory / "tokens.bin", directory / "manifest.json"
    match how:
        case "cut":
            os.truncate(tokens, tokens.stat().st_size - 2)
        case "flipped":
            content = bytearray(tokens.read_bytes())
            content[100] ^= 1
            tokens.write_bytes(content)
        case "no tokens":
            tokens.unlink()
        case "no manifest":
            manifest.unlink()
        case "half a manifest":
            os.truncate(manifest, 50)
        case "foreign":
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "source_fingerprint": "another"}))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("cut", r"is damaged \(tokens.bin has \d+ bytes, not \d+\)"),
        ("flipped", r"is damaged \(the checksum of tokens.bin does not fit\)"),
        ("no tokens", r"is damaged \(.*No such file"),
        ("no manifest", r"is damaged \(.*No such file"),
        ("half a manifest", r"is damaged \("),
        ("foreign", r"is of another source or tokenizer than its name says"),
    ],
)
def test_a_damaged_corpus_is_named_and_refused_until_it_is_deleted(texts, tmp_path, how, sentence):
    source = texts(MANY)
    good = np.array(made(source, tmp_path).tokens_T)
    (directory,) = (tmp_path / "tokens").iterdir()
    damage(directory, how)
    with pytest.raises(InputError, match=f"the corpus {directory} {sentence}.*: delete {directory} to have it made"):
        made(source, tmp_path)
    shutil.rmtree(directory)
    np.testing.assert_array_equal(made(source, tmp_path).tokens_T, good)


PRELUDE = """
import os, pathlib, signal, sys, time
from jaxdistill.data import Files
from jaxdistill.data import Files
from jaxdistill.data.corpus import tokenize
from jaxdistill.data.tokenizers import ByteTokenizer
path, held_out, cache, name = sys.argv[1:]
def documents():
    for i, text in enumerate(Files(path, validation_path=held_out).documents("train")):
        yield text
        if i == 200:
            halfway()
class Halting(Files):
    def documents(self, split):
        return documents()
source = Halting(path, validation_path=held_out)
"""
BUILD = 'tokenize(source, source.fingerprint(), ByteTokenizer(), "train", cache=cache, quiet=True)\n'
KILLED = PRELUDE + "halfway = lambda: os.kill(os.getpid(), signal.SIGKILL)\n" + BUILD
TOGETHER = (
    PRELUDE
    + """
def halfway():
    pathlib.Path(cache, name).touch()
    while not (pathlib.Path(cache, "one").exists() and pathlib.Path(cache, "two").exists()):
        time.sleep(0.01)
"""
    + BUILD
)


def start(script, source, cache, name):
    return subprocess.Popen([sys.executable, "-c", script, source.path, source.validation_path, cache, name])


def test_a_killed_build_is_never_read(texts, tmp_path):
    source, cache = texts(MANY), tmp_path / "cache"
    assert start(KILLED, source, cache, "one").wait() == -signal.SIGKILL
    (left,) = (cache / "tokens").iterdir()
    assert left.name.endswith(".partial") and (left / "tokens.bin").exists()
    assert documents(made(source, cache)) == MANY


def test_two_processes_at_once_make_one_whole_corpus(texts, tmp_path):
    source, cache = texts(MANY), tmp_path / "cache"
    cache.mkdir()
    both = [start(TOGETHER, source, cache, name) for name in ("one", "two")]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    (directory,) = (cache / "tokens").iterdir()
    os.remove(source.validation_path)  # what follows can only come from the cache
    fingerprint = json.loads((directory / "manifest.json").read_text())["source_fingerprint"]
    assert documents(tokenize(source, fingerprint, ByteTokenizer(), "train", cache=cache)) == MANY
