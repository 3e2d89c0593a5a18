"""Spans: offsets by concatenation, the symbols of a batch, special tokens by role, and what is refused."""

import io

import numpy as np
import pytest

from jaxdistill.align import Spelling, check_text, locate, shared_roles
from jaxdistill.align.spelling import NOTHING
from jaxdistill.errors import InputError

BYTES = [bytes([byte]) for byte in range(256)]
TABLE = [*BYTES, b"", b" the", b"ab", "é".encode(), "é".encode()[1:]]
SPELLING = Spelling.of(TABLE, {"eos": 256})


def of(*ids, spelling=SPELLING, shared=()):
    return locate(np.array([ids]), np.ones((1, len(ids)), bool), spelling, shared)


@pytest.mark.parametrize("seed", range(100))
def test_the_symbols_between_the_offsets_of_a_token_are_what_it_spells(draw, seed):
    teacher, student = draw(seed)
    for side in (teacher, student):
        found = locate(side.tokens_BL, side.is_real_BL, side.spelling, ("eos",))
        for row, spelt in enumerate(side.spelt):
            text_Y, at = found.symbol_BY[row], 0
            for place, symbols in enumerate(spelt):
                assert (found.start_BL[row, place], found.end_BL[row, place]) == (at, at + len(symbols))
                assert tuple(text_Y[at : at + len(symbols)]) == symbols
                at += len(symbols)
            assert np.all(text_Y[at:] == NOTHING)


def test_without_shared_roles_offsets_count_bytes_alone():
    found = of(258, 256, 257, 256)
    assert found.start_BL.tolist() == [[0, 2, 2, 6]] and found.end_BL.tolist() == [[2, 2, 6, 6]]
    assert bytes(found.symbol_BY[0].astype(np.uint8)) == b"ab the"


def test_the_bytes_that_a_table_gives_a_special_token_do_not_count():
    spelling = Spelling.of([b"a", b"</s>"], {"eos": 1})
    assert of(0, 1, 0, spelling=spelling).end_BL.tolist() == [[1, 1, 2]]
    assert of(0, 1, 0, spelling=spelling, shared=("eos",)).symbol_BY.tolist() == [[97, 256, 97]]


def test_shared_roles_are_those_of_both_and_name_the_same_symbol_on_either_side():
    one = Spelling.of([b"a", b"", b"", b""], {"bos": 3, "user": 1, "eos": 2})
    two = Spelling.of([b"", b"", b"", b"a"], {"eos": 0, "bos": 1, "system": 2})
    shared = shared_roles(one, two)
    assert shared == shared_roles(two, one) == ("bos", "eos")
    first, second = of(3, 0, 1, 2, spelling=one, shared=shared), of(1, 3, 2, 0, spelling=two, shared=shared)
    assert first.symbol_BY.tolist() == second.symbol_BY.tolist() == [[256, 97, 257]]


def test_batches_of_nothing_have_no_symbols():
    found = locate(np.zeros((2, 3), int), np.zeros((2, 3), bool), SPELLING)
    assert found.symbol_BY.shape == (2, 0) and not found.end_BL.any()
    assert locate(np.zeros((0, 3), int), np.zeros((0, 3), bool), SPELLING).symbol_BY.shape == (0, 0)


@pytest.mark.parametrize("options", [{"model_type": "unigram"}, {"model_type": "bpe"}], ids=str)
def test_a_sentencepiece_model_spells_every_text(options):
    import sentencepiece

    text = "the cat naïve — 你好 the  hat\n" * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n")), model_writer=model, vocab_size=272, byte_fallback=True, bos_id=-1,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False, minloglevel=3,
        **options,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    table = [processor.id_to_piece(token).replace("\u2581", " ").encode() for token in range(len(processor))]
    for token in filter(processor.is_byte, range(len(processor))):
        table[token] = bytes([int(processor.id_to_piece(token)[3:-1], 16)])
    spelling = Spelling.of(table, {"unknown": 0, "eos": processor.eos_id()})
    for line in ("the cat", "  ", "a😀\u0301\n\x00", "", "你 naïve\tcat "):
        ids = np.array([[*processor.encode(line), processor.eos_id()]])
        check_text(locate(ids, ids >= 0, spelling), [line.encode()])


def test_a_space_that_the_tokenizer_put_before_a_document_is_taken_off():
    spelling = Spelling.of([b"", b" ", b" a", b"b"], {"eos": 0})
    tokens_BL = np.array([[2, 3, 2, 0, 1, 3, 2]])
    added_BL = np.array([[1, 0, 0, 0, 1, 0, 1]], bool)
    is_real_BL = np.array([[1, 1, 1, 1, 1, 1, 0]], bool)
    found = locate(tokens_BL, is_real_BL, spelling, ("eos",), added_BL)
    assert found.end_BL.tolist() == [[1, 2, 4, 5, 5, 6, 6]]
    assert found.symbol_BY.tolist() == [[97, 98, 32, 97, 256, 98]]
    with pytest.raises(InputError, match="the id 3 is said to carry an added space and does not begin with one"):
        locate(tokens_BL, is_real_BL, spelling, ("eos",), tokens_BL > 1)


def test_a_text_may_go_on_where_its_row_was_cut():
    check_text(of(258, 256, 257), [b"ab the cat"])
    check_text(of(256), [b""])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"ab thE", r"row 0 of the batch spells b'e' at byte 5, where its text has b'E'"),
        (b"ab", r"row 0 of the batch spells b' the' at byte 2, where its text has b''"),
        ("áb".encode(), r"spells b'ab the' at byte 0, where its text has b'\\xc3\\xa1b'"),
    ],
)
def test_the_first_bytes_that_differ_from_the_text_are_named(text, message):
    with pytest.raises(InputError, match=message):
        check_text(of(258, 256, 257), [text])


def test_ids_that_spell_nothing_are_refused_unless_they_are_padding():
    plain = Spelling.of(TABLE, {})
    with pytest.raises(InputError, match="the id 256 occurs in the batch and has neither bytes nor a role"):
        of(97, 256, spelling=plain)
    assert locate(np.array([[97, 256]]), np.array([[True, False]]), plain).end_BL.tolist() == [[1, 1]]


@pytest.mark.parametrize("token", [-1, 261])
def test_ids_that_the_tokenizer_lacks_are_refused(token):
    with pytest.raises(InputError, match=f"the batch holds the id {token}, and the tokenizer has 261"):
        of(97, token)


def test_arrays_of_other_shapes_and_foreign_roles_are_refused():
    with pytest.raises(InputError, match=r"tokens \(1, 2\) and is_real \(1, 3\) must both be \[B, L\]"):
        locate(np.zeros((1, 2), int), np.ones((1, 3), bool), SPELLING)
    with pytest.raises(InputError, match="the tokenizer has no token for the shared role 'bos'"):
        of(97, shared=("eos", "bos"))
