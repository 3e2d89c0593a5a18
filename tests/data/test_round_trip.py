import io
from typing import Any

import numpy as np
import pytest

from jaxdistill.data.round_trip import TEXTS, known_change, rewritten
from jaxdistill.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, SentencePieceTokenizer
from jaxdistill.errors import InputError

LINES = ["def f(x): return x + 1", "the tokens of a text", "naïve words, more  words", "你好 你好 the"] * 50
PIECES = [
    *"aet x \0\t\n\x7f\u0301\u0338éÅ\u212b你ｆ①ﬁ\u00a0\u00ad\ufeff\u2047\u2581\u05d0\u064b\u202e",
    *("the", "words", "  ", "\r\n", "\n\n", "\u2581\u2581", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "👍🏽"),
    *("<s>", "</s>", "<unk>", "<0x41>", "<0xE4>", "<turn>", "naïve", "שלום", "مرحبا"),
]


def random_texts(count=3000, seed=0):
    """Pieces that tokenizers stumble over, and code points from everywhere."""
    rng = np.random.default_rng(seed)
    points = np.r_[0:0xD800, 0xE000:0x110000]
    for n in rng.integers(0, 14, count):
        anywhere = rng.random(n) < 0.2
        pieces, own = rng.integers(0, len(PIECES), n), rng.choice(points, n)
        yield "".join(chr(c) if a else PIECES[p] for a, c, p in zip(anywhere, own, pieces, strict=True))


def sentencepiece(**settings):
    import sentencepiece

    model = io.BytesIO()
    exact = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    small = {"vocab_size": 300, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 3}
    given: dict[str, Any] = {**exact, **small, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, **given)
    return SentencePieceTokenizer(model.getvalue())


def finished(made, added=()):
    made.add_special_tokens(["</s>"])
    made.add_tokens(list(added))
    return HuggingFaceTokenizer(made.to_str().encode(), "</s>")


def byte_level(normalizer=None, prefix=False, added=(), alphabet=True):
    """As GPT-2, Llama 3 and Qwen."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    made.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=320, initial_alphabet=letters, show_progress=False))
    if normalizer is not None:
        made.normalizer = normalizer
    return finished(made, added)


def byte_fallback(scheme, strip=True, added=()):
    """As Llama 2, Mistral and Gemma: `scheme` of the space before a text; "prepend" in the normaliser."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581theawords\u0301é你"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("\u2581", "\u2581")]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, *map("".join, merges)]))}
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if scheme in ("prepend", "replace"):
        replace = normalizers.Replace(" ", "\u2581")
        made.normalizer = (
            normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if scheme == "prepend" else replace
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    return finished(made, added)


def piece_model():
    """A Unigram model with a space before a text and no bytes, so that a rare character is the unknown piece."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    scores = [("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in "theawords")]
    made = Tokenizer(models.Unigram(scores, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return finished(made)


def exact_tokenizers():
    yield "bytes", ByteTokenizer()
    for kind in ("unigram", "bpe"):
        yield f"{kind}, bare", sentencepiece(model_type=kind, add_dummy_prefix=False)
        yield f"{kind}, dummy prefix", sentencepiece(model_type=kind, add_dummy_prefix=True)
    symbols = ["<turn>", "\n\n"]
    for kind in ("unigram", "bpe"):
        yield f"{kind}, symbols", sentencepiece(model_type=kind, add_dummy_prefix=False, user_defined_symbols=symbols)
        yield f"{kind}, symbols, dummy prefix", sentencepiece(model_type=kind, user_defined_symbols=symbols)
    yield "byte-level", byte_level(added=["<turn>", "\n\n"])


@pytest.fixture(scope="module")
def exact():
    pytest.importorskip("tokenizers")
    return dict(exact_tokenizers())


@pytest.fixture(scope="module")
def rewriting():
    """Tokenizers with the texts that they give back in another form: which text, and which."""
    pytest.importorskip("tokenizers")
    from tokenizers import normalizers

    return {
        "NFC": (byte_level(normalizers.NFC()), {"xe\u0301": "xé", "\u212b": "Å"}),
        "NFKC": (byte_level(normalizers.NFKC()), {"ｆ①ﬁ": "f1fi"}),
        "lower case": (byte_level(normalizers.Lowercase()), {"The": "the"}),
        "strip": (byte_level(normalizers.Strip()), {" a\n": "a"}),
        "byte-level with a prefix": (byte_level(prefix=True), {" a": "a", "  a": " a"}),
        "prepend": (byte_fallback("prepend"), {"a\u2581b": "a b", "\u2581": " "}),
        "replace": (byte_fallback("replace", strip=False), {"a\u2581b": "a b"}),
        "metaspace, first": (byte_fallback("first"), {" a": "a", "\u2581a": "a"}),
        "metaspace, always": (byte_fallback("always"), {" a": "a", "  ": " "}),
        "metaspace, never": (byte_fallback("never", strip=False), {"a\u2581b": "a b"}),
    }


def test_most_tokenizers_give_every_text_back_byte_for_byte(exact):
    texts = [*TEXTS, *random_texts()]
    for tokenizer in exact.values():
        table = tokenizer.token_bytes
        assert len(table.of_id) == tokenizer.vocab_size and table.of_id[tokenizer.eos_id] == b""
        for text in texts:
            ids = tokenizer.encode(text)
            assert table.join(ids) == text.encode()
            assert tokenizer.decode(ids) == tokenizer.normalize(text) == text
            assert rewritten(tokenizer, text, ids) is None


def test_a_dummy_prefix_is_seen_and_hidden(exact):
    for name, tokenizer in exact.items():
        assert tokenizer.token_bytes.prefix == name.endswith("dummy prefix")


def test_a_text_that_spells_a_special_token_is_text_and_one_that_spells_an_added_token_is_that_token(exact):
    for name in ("unigram, symbols", "bpe, symbols, dummy prefix", "byte-level"):
        tokenizer = exact[name]
        ids = tokenizer.encode("a<turn></s>")
        spelled = [tokenizer.token_bytes.of_id[i] for i in ids]
        assert b"<turn>" in spelled and b"</s>" not in spelled
        assert tokenizer.eos_id not in ids


def test_an_added_token_is_spelled_as_it_stands_whatever_the_alphabet_of_the_others():
    pytest.importorskip("tokenizers")
    tokenizer = byte_level(added=["naïve", "<Ġ>"])
    for text in ("naïve", "<Ġ> naïve", *random_texts(500, seed=3)):
        ids = tokenizer.encode(text)
        assert tokenizer.token_bytes.join(ids) == text.encode()
        assert rewritten(tokenizer, text, ids) is None


def test_an_added_token_that_the_model_has_too_is_spelled_as_the_models():
    tokenizers = pytest.importorskip("tokenizers")
    run = tokenizers.AddedToken("\u2581\u2581", special=False, normalized=False)  # as in Gemma
    tokenizer = byte_fallback("replace", strip=False, added=[run])
    for text in ("a  b", "  ", *(text.replace("\u2581", "") for text in random_texts(500, seed=3))):
        assert tokenizer.token_bytes.join(tokenizer.encode(text)) == text.encode()
    ids = tokenizer.encode("\u2581\u2581")
    assert ids.tolist() == tokenizer.encode("  ").tolist()
    assert "rewrites text" in str(rewritten(tokenizer, "\u2581\u2581", ids))


def test_what_a_file_rewrites_is_said_and_is_all_that_changes(rewriting):
    texts = [*TEXTS, *random_texts()]
    for tokenizer, _ in rewriting.values():
        changed = 0
        for text in texts:
            ids = tokenizer.encode(text)
            whole = tokenizer.token_bytes.join(ids)
            assert whole == tokenizer.normalize(text).encode()
            assert (rewritten(tokenizer, text, ids) is None) == (whole == text.encode())
            changed += whole != text.encode()
        assert 0 < changed < len(texts)


def test_the_rewritten_text_is_the_one_expected(rewriting):
    for tokenizer, examples in rewriting.values():
        for text, becomes in examples.items():
            ids = tokenizer.encode(text)
            assert tokenizer.token_bytes.join(ids).decode() == tokenizer.normalize(text) == becomes
            assert "the tokenizer rewrites text before it cuts it: from " in str(rewritten(tokenizer, text, ids))


def test_a_unicode_form_that_is_composed_already_stays(rewriting):
    tokenizer, _ = rewriting["NFC"]
    for text in map(tokenizer.normalize, random_texts(500, seed=2)):
        assert rewritten(tokenizer, text, tokenizer.encode(text)) is None


def test_the_first_bytes_that_differ_are_named(rewriting):
    tokenizer, _ = rewriting["NFC"]
    assert rewritten(tokenizer, "xe\u0301!", tokenizer.encode("xe\u0301!")) == (
        "the tokenizer rewrites text before it cuts it: from byte 1 on, b'e\\xcc\\x81!' comes back as b'\\xc3\\xa9!'"
    )


def test_text_that_is_lost_is_refused():
    tokenizers = pytest.importorskip("tokenizers")
    taking = tokenizers.AddedToken("<turn>", special=False, rstrip=True)
    bare = tokenizers.AddedToken("<turn>", special=False, normalized=False)
    no_bytes = byte_level(alphabet=False)
    for tokenizer, kept, lost, difference in (
        (no_bytes, "the words", "the \U0001f600", r"from byte 4 on, b'\\xf0\\x9f\\x98\\x80' comes back as b"),
        (piece_model(), "the words", "the 你", r"from byte 4 on, b'\\xe4\\xbd\\xa0' comes back as b'<unk>'"),
        (byte_level(added=[taking]), "a<turn>b", "a<turn>  b", r"from byte 7 on, b'  b' comes back as b'b'"),
        (byte_fallback("prepend", added=[bare]), "a", "a<turn>b", r"from byte 7 on, b'b' comes back as b' b'"),
    ):
        assert rewritten(tokenizer, kept, tokenizer.encode(kept)) is None
        with pytest.raises(InputError, match=rf"the tokenizer loses text: {difference}.*leave out the document '"):
            rewritten(tokenizer, lost, tokenizer.encode(lost))


def test_what_a_tokenizer_changes_is_found_without_a_document(exact, rewriting):
    assert [known_change(tokenizer) for tokenizer in exact.values()] == [None] * len(exact)
    lossy = [byte_level(alphabet=False), piece_model(), *(tokenizer for tokenizer, _ in rewriting.values())]
    for tokenizer in lossy:
        assert "the tokenizer does not give every text back: from byte " in str(known_change(tokenizer))
    assert "from byte 0 on, b'e\\xcc\\x81' comes back as b'\\xc3\\xa9'" in str(known_change(rewriting["NFC"][0]))


def test_word_pieces_are_refused():
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    made.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(InputError, match=r"the decoder WordPiece of this tokenizer\.json does not give every token"):
        known_change(finished(made))


def test_a_sentencepiece_model_that_normalises_is_refused():
    for settings in (
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"treat_whitespace_as_suffix": True},
    ):
        name = settings.get("normalization_rule_name", "identity")
        with pytest.raises(
            InputError, match=f"must leave a text as it is, and this one, with the rules '{name}', changes"
        ):
            sentencepiece(**settings)
    assert sentencepiece(treat_whitespace_as_suffix=True, add_dummy_prefix=False).encode("a b").size


def test_half_of_a_surrogate_pair_is_refused_by_every_tokenizer(exact):
    for tokenizer in exact.values():
        with pytest.raises(InputError, match="character 1 is half of a surrogate pair"):
            tokenizer.encode("a\ud800")


def test_ids_of_another_text_are_refused(exact):
    tokenizer = exact["byte-level"]
    with pytest.raises(InputError, match="the tokenizer loses text: from byte 1 on, b'b' comes back as b''"):
        rewritten(tokenizer, "ab", tokenizer.encode("a"))
