import json

import pytest

from jaxdistill.data import Bytes, HuggingFace, SentencePiece
from jaxdistill.errors import InputError

LINES = ["def f(x):\n    return x + 1\n", "the tokens of a text\n", "naïve words, more words"] * 50


def test_bytes_need_no_training(texts):
    assert Bytes().build(texts([]), "unused").vocab_size == 257


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_same_text_and_settings_give_the_same_model(texts, tmp_path, kind):
    source = texts(LINES)
    built = [SentencePiece(286, kind).build(source, "x", cache=tmp_path / place) for place in ("here", "there")]
    assert built[0].fingerprint == built[1].fingerprint
    assert built[0].vocab_size == 286


def test_a_trained_model_comes_from_the_cache(texts, tmp_path):
    source = texts(LINES)
    first = SentencePiece(286).build(source, source.fingerprint(), cache=tmp_path)
    gone = texts(["nothing of the kind"], name="other")  # training on this would fail
    assert SentencePiece(286).build(gone, source.fingerprint(), cache=tmp_path).fingerprint == first.fingerprint
    with pytest.raises(InputError, match="cannot learn 286 ids"):
        SentencePiece(286).build(gone, gone.fingerprint(), cache=tmp_path)


def test_it_learns_from_the_train_split_and_only_from_its_first_characters(texts, tmp_path):
    plain = SentencePiece(286).build(texts(LINES), "1", cache=tmp_path)
    held_out = SentencePiece(286).build(texts(LINES, ["quite another text"] * 500, name="a"), "2", cache=tmp_path)
    assert held_out.fingerprint == plain.fingerprint
    longer = texts([*LINES, *["quite another text"] * 500], name="b")
    few = SentencePiece(286, characters=sum(map(len, LINES))).build(longer, "3", cache=tmp_path)
    many = SentencePiece(286).build(longer, "4", cache=tmp_path)
    assert few.fingerprint == plain.fingerprint
    assert many.fingerprint != plain.fingerprint


def test_a_long_line_is_learned_from_and_not_dropped(texts, tmp_path):
    line = "words and more words and then some tokens " * 500  # one line of 21 kB
    tokenizer = SentencePiece(290).build(texts([line]), "1", cache=tmp_path)
    assert len(tokenizer.encode(line)) < len(line) / 2


def test_rare_characters_stay_bytes(texts, tmp_path):
    source = texts(["abab" * 500 + "\u4f60"] * 20)
    rare, own = (
        SentencePiece(262, "bpe", character_coverage=c).build(source, "1", cache=tmp_path) for c in (0.99, 1.0)
    )
    assert len(rare.encode("\u4f60")) == 3
    assert len(own.encode("\u4f60")) == 1


@pytest.mark.parametrize(
    ("train", "size", "sentence"),
    [
        (LINES, 100_000, r"cannot learn 100000 ids from this text: .*too high.*<= \d+"),
        (LINES, 265, r"cannot learn 265 ids from this text: Vocabulary size is smaller than required_chars"),
        ([], 286, "no text to learn a tokenizer from: give it some, or use Bytes"),
        (["\n", ""], 286, "no text to learn a tokenizer from"),
    ],
)
def test_text_that_does_not_fit_the_size_is_refused(texts, tmp_path, train, size, sentence):
    with pytest.raises(InputError, match=sentence):
        SentencePiece(size).build(texts(train), "x", cache=tmp_path)
    assert list((tmp_path / "tokenizers").glob("*")) == []


def test_an_error_of_the_source_is_the_one_that_is_raised(texts, tmp_path):
    source = texts(LINES)
    with open(source.path, "a") as file:
        file.write("broken\n")
    with pytest.raises(InputError, match=r"train.jsonl:151 is not JSON"):
        SentencePiece(286).build(source, "x", cache=tmp_path)


def test_unusable_settings_are_refused():
    with pytest.raises(InputError, match="model_type='word' must be 'unigram' or 'bpe'"):
        SentencePiece(286, "word")
    with pytest.raises(InputError, match="needs a vocab_size above 258"):
        SentencePiece(258)
    with pytest.raises(InputError, match="some characters"):
        SentencePiece(286, characters=0)
    for coverage in (0, 1.1, float("nan")):
        with pytest.raises(InputError, match="must be above 0 and at most 1"):
            SentencePiece(286, character_coverage=coverage)


@pytest.fixture
def face(tmp_path):
    """A directory with a tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1, "b": 2}, unk_token="a")).save(
        str(tmp_path / "tokenizer.json")
    )
    return tmp_path


def test_hugging_face_takes_a_file_or_its_directory(face, texts):
    for path in (face, face / "tokenizer.json"):
        built = HuggingFace(str(path), eos="</s>").build(texts([]), "unused")
        assert (built.vocab_size, built.eos_id) == (3, 1)


@pytest.mark.parametrize("token", ["b", {"content": "b", "lstrip": False}])
def test_hugging_face_reads_the_end_of_document_from_the_configuration(face, texts, token):
    (face / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    assert HuggingFace(str(face)).build(texts([]), "unused").eos_id == 2
    assert HuggingFace(str(face), eos="</s>").build(texts([]), "unused").eos_id == 1


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"eos_token": null}'])
def test_hugging_face_without_an_end_of_document_is_refused(face, texts, content):
    if content is not None:
        (face / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer_config.json names no eos_token: name the token that ends"):
        HuggingFace(str(face)).build(texts([]), "unused")


def test_a_missing_tokenizer_file_is_named(texts, tmp_path):
    with pytest.raises(InputError, match=r"cannot read the tokenizer .*none: No such file"):
        HuggingFace(str(tmp_path / "none"), eos="</s>").build(texts([]), "unused")
