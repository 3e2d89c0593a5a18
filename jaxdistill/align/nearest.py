"""For every token of one tokenizer the token of another that spells almost the same (MinED).

The edit distance counts bytes that are put in, left out or exchanged (Levenshtein 1966). FuseLLM aligns vocabularies by
it (Wan et al. 2024, arXiv 2401.10491), which ALM's authors call MinED and compare with (arXiv 2503.20083).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

NO_MATCH = -1  # of a special token whose role the other tokenizer does not have


def nearest(
    own: Sequence[bytes],
    own_roles: Mapping[str, int],
    other: Sequence[bytes],
    other_roles: Mapping[str, int],
    advance: Callable[[int], object] = lambda done: None,
) -> np.ndarray:
    """The id of `other` at the least edit distance from each of `own`, the highest of several; int32 [V].

    The highest, because a byte fallback comes before the letter that texts are cut into. Where both have several ids of
    one spelling, they are paired from the highest down. Special tokens, which spell nothing, stand for those of the
    same role. For what the other does not spell, its tokens are tried by length, as long as the length leaves a chance.

    Args:
      own, other: the bytes of every id; `b""` for special tokens.
      own_roles, other_roles: {role: id} of special tokens, whose bytes do not count.
      advance: called with the number of tokens done since the last call.
    """
    match_V, groups = same(own, own_roles, other, other_roles), _by_length(other, set(other_roles.values()))
    special = set(own_roles.values())
    for token, spelt in enumerate(own):
        if match_V[token] == NO_MATCH and spelt and token not in special:
            match_V[token] = _nearest(spelt, groups)
        advance(1)
    return match_V


def same(
    own: Sequence[bytes], own_roles: Mapping[str, int], other: Sequence[bytes], other_roles: Mapping[str, int]
) -> np.ndarray:
    """The id of `other` that spells the same as each of `own` or has its role, or NO_MATCH; int32 [V].

    No two have the same one. The arguments, and the order of several ids of one spelling, are as in `nearest`.
    """
    special, twins = set(other_roles.values()), dict[bytes, list[int]]()
    for token, spelt in enumerate(other):
        if spelt and token not in special:
            twins.setdefault(spelt, []).append(token)
    roles = {token: other_roles.get(role, NO_MATCH) for role, token in own_roles.items()}
    match_V = np.full(len(own), NO_MATCH, np.int32)
    for token, spelt in reversed(list(enumerate(own))):
        if token in roles:
            match_V[token] = roles[token]
        elif alike := twins.get(spelt):
            match_V[token] = alike.pop()
    return match_V


def distances(spelt: bytes, others: np.ndarray) -> np.ndarray:
    """The edit distances from `spelt` to texts of one length: uint8 [R, length] to int [R]."""
    place = np.arange(others.shape[1] + 1)
    row = np.broadcast_to(place, (len(others), len(place)))
    for byte in spelt:
        exchanged = row[:, :-1] + (others != byte)
        without = np.concatenate([row[:, :1] + 1, np.minimum(row[:, 1:] + 1, exchanged)], axis=1)
        row = np.minimum.accumulate(without - place, axis=1) + place  # one more of the other's bytes, left to right
    return row[:, -1]


def _by_length(table: Sequence[bytes], special: set[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """{length: (ids ascending, their bytes [R, length])} of what text is spelt with."""
    ids: dict[int, list[int]] = {}
    for token, spelt in enumerate(table):
        if spelt and token not in special:
            ids.setdefault(len(spelt), []).append(token)
    return {
        length: (np.array(own), np.frombuffer(b"".join(table[t] for t in own), np.uint8).reshape(len(own), length))
        for length, own in ids.items()
    }


def _nearest(spelt: bytes, groups: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> int:
    best, found = np.inf, NO_MATCH
    for length in sorted(groups, key=lambda length: abs(length - len(spelt))):
        if abs(length - len(spelt)) > best:
            break  # no text is nearer than its length allows
        ids, others = groups[length]
        distance = distances(spelt, others)
        row = len(distance) - 1 - int(np.argmin(distance[::-1]))
        if (-distance[row], ids[row]) > (-best, found):
            best, found = distance[row], int(ids[row])
    return found
