"""What the ids of a tokenizer spell: bytes, or a role.

Special tokens spell nothing: what they stand for is their role, such as "eos". A role that both tokenizers have takes
one symbol in the text of either side, beyond the 256 bytes, so that its tokens are aligned as bytes are.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdistill.errors import InputError

BYTES = 256  # symbols from here on are special tokens
NOTHING = -1  # the symbol behind the end of a row
SPACES = b" \n\t"  # what the first byte of a new word is, in the words of ALM


@dataclasses.dataclass(frozen=True, eq=False)
class Spelling:
    """What every id of a tokenizer spells.

    Attributes:
      symbols: int16, the symbols of all ids one after another: their bytes, or of the r-th role 256 + r alone.
      starts: int64 [V + 1], where each id begins and, at the end, how many symbols there are.
      roles: {role: id} of the special tokens. Padding is no role: `locate` is told which tokens are real.
    """

    symbols: np.ndarray
    starts: np.ndarray
    roles: Mapping[str, int]

    @classmethod
    def of(cls, table: Sequence[bytes], roles: Mapping[str, int]) -> "Spelling":
        """From the bytes of every id, where those of special tokens do not count.

        Raises InputError for a role whose id does not exist or has another role too, and for "pad".
        """
        _check_roles(roles, len(table))
        spelt = list(table)
        for token in roles.values():
            spelt[token] = b"?"  # holds the place of its symbol
        starts = np.concatenate([[0], np.cumsum([len(part) for part in spelt], dtype=np.int64)])
        symbols = np.frombuffer(b"".join(spelt), np.uint8).astype(np.int16)
        symbols[starts[list(roles.values())]] = BYTES + np.arange(len(roles))
        return cls(symbols, starts, dict(roles))

    def is_special(self) -> np.ndarray:
        """bool [V]: what no text is spelt with."""
        special_V = np.diff(self.starts) == 0
        special_V[list(self.roles.values())] = True
        return special_V

    def is_boundary(self) -> np.ndarray:
        """bool [V]: special tokens, and those that begin with a space, a newline or a tab."""
        first_V = np.append(self.symbols, np.int16(NOTHING))[self.starts[:-1]]
        return self.is_special() | np.isin(first_V, list(SPACES))


def shared_roles(teacher: Spelling, student: Spelling) -> tuple[str, ...]:
    """The roles that both tokenizers have, in an order that does not depend on theirs."""
    return tuple(sorted(teacher.roles.keys() & student.roles.keys()))


def _check_roles(roles: Mapping[str, int], size: int) -> None:
    seen: dict[int, str] = {}
    for role, token in roles.items():
        if role == "pad":
            raise InputError("padding is no role, since its id often has another one: leave 'pad' out of the roles")
        if not 0 <= token < size:
            raise InputError(f"the role {role!r} has the id {token}, and the tokenizer has {size}: name its own")
        if token in seen:
            raise InputError(f"the id {token} has the roles {seen[token]!r} and {role!r}: leave one of them out")
        seen[token] = role
