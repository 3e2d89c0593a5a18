import io
import json
import os

import numpy as np
import pytest

from jaxdistill.data import load_tokenizer
from jaxdistill.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, SentencePieceTokenizer
from jaxdistill.data.vocabularies import SentencePiece
from jaxdistill.errors import InputError

NASTY = [
    "",
    "plain words",
    "  two  spaces  ",
    "\ttab\n\n\r\n end \n",
    "naïve café — 你好",
    "🙂👍🏽 \U0001f468\u200d\U0001f469",
    "e\u0301 é \ufb01 \u2460 \uff46\uff55\uff4c\uff4c",
    "\u2581x \u2581\u2581 y\u2581",
    "\ufeffbom \u2047 \u2585 \u00a0",
    "a\0b\x01",
    "<s></s><unk><0x41><eos>",
]


@pytest.fixture(scope="module")
def piece():
    """A small SentencePiece model of each type, trained on a few lines."""

    class Lines:
        def documents(self, split):
            yield from ["def f(x):\n    return x + 1\n", "the tokens of a text\n", "naïve words, more words"] * 50

    return {kind: SentencePieceTokenizer(SentencePiece(286, kind)._train(Lines())) for kind in ("unigram", "bpe")}


@pytest.fixture(scope="module")
def face():
    """A byte-level BPE tokenizer.json with an end-of-text token."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["the tokens of a text", "def f(x): return x + 1"] * 50, trainer)
    made.enable_truncation(4)
    return made.to_str().encode()


@pytest.fixture(params=["bytes", "unigram", "bpe", "huggingface"])
def tokenizer(request, piece, face):
    match request.param:
        case "bytes":
            return ByteTokenizer()
        case "huggingface":
            return HuggingFaceTokenizer(face, "<eos>")
        case kind:
            return piece[kind]


def test_every_text_comes_back_as_it_was(tokenizer):
    for text in NASTY:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


def test_no_text_encodes_to_the_end_of_document_or_past_the_vocabulary(tokenizer):
    for text in NASTY:
        ids = tokenizer.encode(text)
        assert ((ids >= 0) & (ids < tokenizer.vocab_size) & (ids != tokenizer.eos_id)).all()
    assert 0 <= tokenizer.eos_id < tokenizer.vocab_size


def test_the_end_of_document_has_no_text(tokenizer):
    ids = [tokenizer.eos_id, *tokenizer.encode("some text"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "some text"


def test_bytes_are_utf8():
    assert ByteTokenizer().encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert ByteTokenizer().decode([97, 0xC3, 98]) == "a\ufffdb"


def test_saved_and_loaded_it_is_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert (type(loaded), loaded.fingerprint) == (type(tokenizer), tokenizer.fingerprint)
    assert (loaded.vocab_size, loaded.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
    for text in NASTY:
        np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))


def test_different_tokenizers_have_different_fingerprints(piece, face):
    others = [HuggingFaceTokenizer(face, "<eos>"), HuggingFaceTokenizer(face, "the"), ByteTokenizer()]
    assert len({tokenizer.fingerprint for tokenizer in (*piece.values(), *others)}) == 5


def test_a_missing_or_damaged_tokenizer_is_named(piece, tmp_path):
    with pytest.raises(InputError, match=r"holds no saved tokenizer: No such file"):
        load_tokenizer(tmp_path)
    piece["bpe"].save(tmp_path)
    card = tmp_path / "jaxdistill_tokenizer.json"
    good = card.read_text()
    for bad in ("{", "[]", "{}", json.dumps({"kind": "morse"})):
        card.write_text(bad)
        with pytest.raises(InputError, match=r"the tokenizer in .* is damaged: .*; delete it and make it again"):
            load_tokenizer(tmp_path)
    card.write_text(good)
    piece["unigram"].save(tmp_path / "other")
    os.replace(tmp_path / "other" / "tokenizer.model", tmp_path / "tokenizer.model")
    with pytest.raises(
        InputError, match=r"damaged: its files do not fit its jaxdistill_tokenizer.json; delete it and make it again"
    ):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\xff" * 10)
    with pytest.raises(InputError, match=r"is damaged: this is not a SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(InputError, match=r"holds no saved tokenizer: No such file or directory: .*tokenizer.model"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_without_bytes_is_refused():
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abc abd"] * 9), model_writer=model, vocab_size=10, minloglevel=3
    )
    with pytest.raises(InputError, match="needs an end of sentence and byte fallback"):
        SentencePieceTokenizer(model.getvalue())


def test_what_is_no_hugging_face_tokenizer_is_refused(face):
    with pytest.raises(InputError, match=r"this is not a tokenizer.json: "):
        HuggingFaceTokenizer(b"{}", "<eos>")
    with pytest.raises(InputError, match="has no token '</s>' to end a document with: name another one with eos"):
        HuggingFaceTokenizer(face, "</s>")


def test_gaps_in_the_ids_of_a_hugging_face_tokenizer_count():
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"a": 0, "<eos>": 7}, unk_token="a")
    tokenizer = HuggingFaceTokenizer(tokenizers.Tokenizer(model).to_str().encode(), "<eos>")
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (8, 7)
