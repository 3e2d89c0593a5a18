"""What ids spell: boundaries, special tokens, and roles that clash."""

import numpy as np
import pytest

from jaxdistill.align import Spelling, shared_roles
from jaxdistill.errors import InputError

TABLE = [*(bytes([byte]) for byte in range(256)), b"", b" the"]


def test_boundaries_are_special_tokens_and_what_begins_with_a_space():
    table = [b" a", b"\n", b"\ta", b"a b", b"", b"</s>", b"", "\u00a0".encode(), b"z", b""]
    spelling = Spelling.of(table, {"eos": 5, "bos": 6})
    assert np.flatnonzero(spelling.is_boundary()).tolist() == [0, 1, 2, 4, 5, 6, 9]
    assert np.flatnonzero(spelling.is_special()).tolist() == [4, 5, 6, 9]


def test_shared_roles_are_those_of_both_in_one_order():
    one, two = Spelling.of(TABLE, {"eos": 256, "user": 1, "bos": 2}), Spelling.of(TABLE, {"bos": 5, "eos": 256})
    assert shared_roles(one, two) == shared_roles(two, one) == ("bos", "eos")
    assert shared_roles(one, Spelling.of(TABLE, {})) == ()


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"eos": 256, "bos": 256}, "the id 256 has the roles 'eos' and 'bos': leave one of them out"),
        ({"eos": 258}, "the role 'eos' has the id 258, and the tokenizer has 258"),
        ({"eos": -1}, "the role 'eos' has the id -1"),
        ({"pad": 256}, "padding is no role"),
    ],
)
def test_roles_that_clash_are_refused(roles, message):
    with pytest.raises(InputError, match=message):
        Spelling.of(TABLE, roles)
