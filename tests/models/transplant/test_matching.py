"""A new token is an old one that spells the same or has the same role."""

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.models.transplant.matching import NO_COPY, match, missing


def test_a_token_is_matched_by_its_bytes_and_a_special_one_by_its_role():
    old = (b"", b"a", b"b", b"", b"ab")
    new = (b"ab", b"c", b"", b"a", b"", b"")
    copies = match(old, {"bos": 0, "eos": 3}, new, {"eos": 2, "unk": 4})
    assert copies.tolist() == [4, NO_COPY, 3, 1, NO_COPY, NO_COPY]
    assert missing(copies).tolist() == [1, 4, 5]


def test_every_copied_token_spells_the_same_and_every_other_one_is_new(old_table, new_table):
    copies = match(old_table, {"eos": 0}, new_table, {"eos": 256})
    assert copies[256] == 0
    for token, old in enumerate(copies):
        if old != NO_COPY and token != 256:
            assert old_table[old] == new_table[token] != b""
        elif token != 256:
            assert not new_table[token] or new_table[token] not in old_table
    assert (copies != NO_COPY).sum() == 26 + 3 + 1  # letters, space, 0xc3 and "the", the end


def test_a_vocabulary_matches_itself_in_any_order(old_table):
    order = np.random.default_rng(0).permutation(37)
    where = np.argsort(order)
    new = [old_table[token] for token in order]
    copies = match(old_table, {"bos": 0, "eos": 35}, new, {"bos": where[0], "eos": where[35]})
    np.testing.assert_array_equal(copies, order)


def test_ids_that_spell_the_same_are_paired_from_the_highest_and_those_left_over_have_no_copy():
    assert match((b"A", b"x", b"A"), {}, (b"x", b"A", b"A", b"A"), {}).tolist() == [1, NO_COPY, 0, 2]
    assert match((b"A", b"A"), {}, (b"A",), {}).tolist() == [1]


def test_the_bytes_of_a_special_token_do_not_count():
    assert match((b"</s>", b"a"), {"eos": 0}, (b"</s>", b"a"), {}).tolist() == [NO_COPY, 1]
    assert match((b"</s>", b"a"), {}, (b"a", b"</s>"), {"eos": 1}).tolist() == [1, NO_COPY]
    assert match((b"</s>", b"a"), {"eos": 0}, (b"a", b"a"), {"eos": 0}).tolist() == [0, 1]


def test_two_roles_of_one_new_token_may_have_one_old_token():
    assert match((b"",), {"eos": 0, "bos": 0}, (b"",), {"eos": 0, "bos": 0}).tolist() == [0]
    assert match((b"", b""), {"eos": 1}, (b"",), {"eos": 0, "bos": 0}).tolist() == [1]


def test_two_roles_of_one_new_token_that_are_two_old_tokens_are_refused():
    with pytest.raises(InputError, match=r"^the new id 0 is both 'bos' and 'eos', which are two tokens of the old"):
        match((b"", b""), {"eos": 0, "bos": 1}, (b"",), {"eos": 0, "bos": 0})


@pytest.mark.parametrize(
    ("old_roles", "new_roles", "message"),
    [
        ({"eos": 2}, {}, "the old role 'eos' has the id 2, and the table 2 ids"),
        ({}, {"eos": -1}, "the new role 'eos' has the id -1, and the table 1 ids"),
    ],
)
def test_a_role_without_a_row_is_refused(old_roles, new_roles, message):
    with pytest.raises(InputError, match=f"^{message}"):
        match((b"a", b""), old_roles, (b"",), new_roles)
