"""Which old token is the same as a new one: it spells the same bytes, or has the same role."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdistill.errors import InputError

NO_COPY = -1  # of a new token that the old vocabulary does not have


def match(
    old_table: Sequence[bytes],
    old_roles: Mapping[str, int],
    new_table: Sequence[bytes],
    new_roles: Mapping[str, int],
) -> np.ndarray:
    """The old id of every new token, int64 [V'], or NO_COPY.

    Several ids that spell the same, as a byte fallback and the letter do, are paired from the highest down, since the
    letter, which texts are cut into, comes last. Those left over have no copy: two rows alike would share a probability
    that was one token's.

    Args:
      old_table, new_table: the bytes of every id; `b""` for special tokens.
      old_roles, new_roles: {role: id} of special tokens, whose bytes do not count. A role that both tokenizers have is
        copied, and one that only the new one has is not.

    InputError for a role whose id does not exist, and for a new token with two roles that are two old tokens.
    """
    _check_ids("old", old_roles, len(old_table))
    _check_ids("new", new_roles, len(new_table))
    unpaired = defaultdict(list)
    for token, spelt in _spelt(old_table, old_roles):
        unpaired[spelt].append(token)
    copies = np.full(len(new_table), NO_COPY, np.int64)
    for token, spelt in reversed(_spelt(new_table, new_roles)):
        if twins := unpaired.get(spelt):
            copies[token] = twins.pop()
    for token, old in _shared_roles(old_roles, new_roles).items():
        copies[token] = old
    return copies


def missing(copies: np.ndarray) -> np.ndarray:
    """The new ids without a copy, ascending, int64 [R]."""
    return np.flatnonzero(np.asarray(copies) == NO_COPY)


def _spelt(table: Sequence[bytes], roles: Mapping[str, int]) -> list[tuple[int, bytes]]:
    """(id, bytes) of what text is spelt with."""
    special = set(roles.values())
    return [(token, spelt) for token, spelt in enumerate(table) if spelt and token not in special]


def _shared_roles(old_roles: Mapping[str, int], new_roles: Mapping[str, int]) -> dict[int, int]:
    """{new id: old id} of the roles that both have; InputError where a new id would have two old ones."""
    chosen: dict[int, str] = {}
    for role in sorted(old_roles.keys() & new_roles.keys()):
        first = chosen.setdefault(new_roles[role], role)
        if old_roles[first] != old_roles[role]:
            raise InputError(
                f"the new id {new_roles[role]} is both {first!r} and {role!r}, which are two tokens of the old "
                "tokenizer: leave one of them out of the new roles"
            )
    return {token: old_roles[role] for token, role in chosen.items()}


def _check_ids(which: str, roles: Mapping[str, int], size: int) -> None:
    for role, token in roles.items():
        if not 0 <= token < size:
            raise InputError(
                f"the {which} role {role!r} has the id {token}, and the table {size} ids: name one of them"
            )
