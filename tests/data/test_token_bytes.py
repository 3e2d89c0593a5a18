import numpy as np
import pytest

from jaxdistill.data.token_bytes import BYTE_LEVEL, TokenBytes, of_byte_level, of_piece, probed, speller, utf8
from jaxdistill.errors import InputError

SPACED = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
TABLE = (b"a", b" b", b"\xe4\xbd", b"\xa0 ", b"", b" ")


@pytest.mark.parametrize(
    ("ids", "bare", "prefixed"),
    [
        ([0, 1, 2, 3, 4, 0], "a b你 a", "a b你 a"),  # not every text has the prefix
        ([1, 0], " ba", "ba"),
        ([4, 1, 0], " ba", "ba"),  # the end of the document before it is nowhere
        ([5, 1], "  b", " b"),  # it may be a token of its own, and the text's own space stays
        ([4, 4], "", ""),
        ([], "", ""),
    ],
)
def test_the_bytes_of_tokens_are_joined_without_a_space_that_is_not_the_texts(ids, bare, prefixed):
    assert TokenBytes(TABLE).join(ids) == TokenBytes(TABLE).join(np.array(ids, np.int32)) == bare.encode()
    assert TokenBytes(TABLE, prefix=True).join(ids) == prefixed.encode()


def test_one_letter_tells_whether_a_space_is_put_before_a_text():
    tokens = [b"a", b" a", b" "]
    for ids, prefix in (([0], False), ([1], True), ([2, 0], True)):
        assert probed(tokens, lambda text, ids=ids: np.array(ids)) == TokenBytes(tuple(tokens), prefix)


def test_the_byte_level_alphabet_is_that_of_the_library():
    tokenizers = pytest.importorskip("tokenizers")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert set(BYTE_LEVEL) == set(level.alphabet())
    assert sorted(BYTE_LEVEL.values()) == list(range(256))
    text = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 61), *range(0xE000, 0x110000, 4001)]))
    (written, _), *rest = level.pre_tokenize_str(text)
    assert not rest and of_byte_level(written) == text.encode()


def test_a_byte_level_token_of_other_characters_stands_for_itself():
    assert of_byte_level("Ġthe") == b" the"
    assert of_byte_level("你Ġ") == "你Ġ".encode()


@pytest.mark.parametrize(
    ("piece", "plain", "spaced", "both"),
    [
        ("\u2581the", "\u2581the".encode(), b" the", b" the"),
        ("<0xE4>", b"<0xE4>", b"<0xE4>", b"\xe4"),
        ("<0xe4>", b"<0xe4>", b"<0xe4>", b"\xe4"),
        ("<0xE4>x", b"<0xE4>x", b"<0xE4>x", b"<0xE4>x"),
        ("<0xEG>", b"<0xEG>", b"<0xEG>", b"<0xEG>"),
    ],
)
def test_a_piece_is_text_with_written_spaces_or_a_byte(piece, plain, spaced, both):
    assert of_piece(piece, spaces=False, fallback=False) == plain
    assert of_piece(piece, spaces=True, fallback=False) == spaced
    assert of_piece(piece, spaces=True, fallback=True) == both


@pytest.mark.parametrize(
    ("decoder", "spelled"),
    [
        ({"type": "ByteLevel"}, ["\u2581".encode(), b" ", b"<0x41>"]),
        ({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}, ["\u2581".encode(), b" ", b"<0x41>"]),
        ({"type": "Metaspace", "replacement": "\u2581"}, [b" ", "Ġ".encode(), b"<0x41>"]),
        ({"type": "Sequence", "decoders": [SPACED, {"type": "ByteFallback"}]}, [b" ", "Ġ".encode(), b"A"]),
        ({"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}, ["\u2581".encode(), "Ġ".encode(), b"A"]),
    ],
)
def test_the_decoder_of_a_file_says_how_tokens_spell_bytes(decoder, spelled):
    assert [speller(decoder)(token) for token in ("\u2581", "Ġ", "<0x41>")] == spelled


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        (None, "null"),
        ({"type": "WordPiece", "prefix": "##"}, "WordPiece"),
        ({"type": "BPEDecoder", "suffix": "</w>"}, "BPEDecoder"),
        ({"type": "Metaspace", "replacement": "_"}, "Metaspace"),
        ({**SPACED, "content": ""}, "Replace"),
        ({**SPACED, "pattern": {"Regex": "\u2581"}}, "Replace"),
        ({"type": "Sequence", "decoders": []}, "null"),
        ({"type": "Sequence", "decoders": [SPACED, {"type": "CTC"}]}, "CTC, Replace"),
    ],
)
def test_a_decoder_whose_tokens_have_no_bytes_of_their_own_is_refused(decoder, name):
    with pytest.raises(InputError, match=f"the decoder {name} of this tokenizer.json does not give every token bytes"):
        speller(decoder)


def test_invalid_bytes_that_python_passes_on_in_a_text_are_refused():
    assert utf8("e\u0301\0") == b"e\xcc\x81\0"
    with pytest.raises(InputError, match="character 2 is half of a surrogate pair, which no UTF-8 spells"):
        utf8(b"ab\xff".decode(errors="surrogateescape"))
