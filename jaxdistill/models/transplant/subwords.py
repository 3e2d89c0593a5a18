"""New tokens out of the old ones that they are cut into: FVT, and the heuristic of TokenAdapt that extends it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from jaxdistill.errors import InputError
from jaxdistill.models.transplant.fills import Fill, Mixture, Normal
from jaxdistill.models.transplant.matching import missing

Encode = Callable[[bytes], Sequence[int]]
Cut = tuple[int, ...]

_BATCH = 256  # new tokens whose similarities to the whole old vocabulary are in memory at once


def cut(old_table: Sequence[bytes], new_table: Sequence[bytes], copies: np.ndarray, encode: Encode) -> list[Cut]:
    """The old ids that every new token without a copy is cut into, in the order of `matching.missing`.

    Args:
      old_table, new_table, copies: as in `matching.match`.
      encode: the old tokenizer, bytes to ids; none for bytes that it has no ids for, such as half a character.

    Special tokens, which have no bytes, are cut into nothing. InputError where ids do not spell the bytes, as those of
    a tokenizer that puts a space or a beginning in front.
    """
    return [_cut_one(old_table, new_table[token], encode) for token in missing(copies)]


def _cut_one(old_table: Sequence[bytes], spelt: bytes, encode: Encode) -> Cut:
    ids = tuple(int(i) for i in encode(spelt)) if spelt else ()
    parts = [old_table[i] for i in ids]
    if ids and (b"".join(parts) != spelt or b"" in parts):
        raise InputError(
            f"the old tokenizer cuts {spelt!r} into {parts}: give an encode whose ids spell these bytes and nothing "
            "else, and which gives no ids where there are none"
        )
    return ids


def fvt(cuts: Sequence[Cut], rest: Fill = Normal()) -> Mixture:
    """Fast vocabulary transfer (Gee et al. 2022, arXiv 2402.09977): the mean of the tokens in the cut.

    `rest` fills the rows of tokens that are cut into nothing.
    """
    return Mixture.of([(ids, [1 / len(ids) for _ in ids]) for ids in cuts], rest)


def local_global(
    cuts: Sequence[Cut],
    old_table: Sequence[bytes],
    new_table: Sequence[bytes],
    copies: np.ndarray,
    old_meaning_VC: Any,
    new_meaning_VC: Any,
    *,
    share: float = 0.3,
    temperature: float = 0.3,
    neighbours: int = 3,
    rest: Fill = Normal(),
) -> Mixture:
    """TokenAdapt (Sharthak et al. 2025, arXiv 2505.09738), as its authors' program has it.

    (1 - share) sum_i softmax_i((cos_i + length_i) / (2 temperature)) old_i over the tokens of the cut, where length_i
    is the part of the new token's characters that token i has, and share sum_j softmax_j(cos_j / temperature) old_j
    over its nearest neighbours. A token that is cut into nothing has its neighbours alone, a special one `rest`.

    Args:
      cuts: as `cut` gives them, for the tables and copies that follow.
      old_meaning_VC, new_meaning_VC: what a model of text makes of every old and new token, [V, C] and [V', C], whose
        cosines are meant; rows of special tokens are not read.
      share, temperature, neighbours: the authors' defaults.

    InputError for sizes that do not fit each other and settings out of range.
    """
    wanted = missing(copies)
    _check_meanings(old_table, new_table, old_meaning_VC, new_meaning_VC)
    _check_settings(sum(map(bool, old_table)), share, temperature, neighbours)
    if len(cuts) != len(wanted):
        raise InputError(
            f"{len(cuts)} cuts, and {len(wanted)} tokens have no copy: cut with the same tables and copies"
        )
    old_VC, new_RC = _unit(old_meaning_VC), _unit(new_meaning_VC)[wanted]
    length_V = _characters(old_table)
    close_RS, near_RS = _nearest(new_RC, old_VC, np.flatnonzero(length_V), neighbours)

    def mix(r: int, ids: Cut, spelt: bytes) -> tuple[Sequence[int], Sequence[float]]:
        if not spelt:
            return (), ()
        own, near = list(ids), softmax(close_RS[r] / temperature)
        if not own:
            return near_RS[r], near
        score = (old_VC[own] @ new_RC[r] + length_V[own] / _characters([spelt])) / 2
        local = softmax(score / temperature)
        return [*own, *near_RS[r]], [*((1 - share) * local), *(share * near)]

    spelt = [new_table[token] for token in wanted]
    return Mixture.of([mix(r, *pair) for r, pair in enumerate(zip(cuts, spelt, strict=True))], rest)


def _unit(x_VC: Any) -> np.ndarray:
    """Rows of length one; zeros stay."""
    x_VC = np.asarray(x_VC, np.float32)
    length_V = np.linalg.norm(x_VC, axis=1, keepdims=True)
    return x_VC / np.where(length_V > 0, length_V, 1)


def _characters(table: Sequence[bytes]) -> np.ndarray:
    """Characters of every token, [V]; half a character counts as one."""
    return np.array([len(spelt.decode(errors="replace")) for spelt in table])


def _nearest(new_RC: np.ndarray, old_VC: np.ndarray, among: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest `num` dot products of each new row with the old rows `among`, and whose they are: both [R, num]."""
    among_VC = jnp.asarray(old_VC[among])

    def best(new_C):
        return jax.lax.top_k(jnp.matmul(among_VC, new_C, precision="highest"), num)

    if not len(new_RC):
        return np.zeros((0, num)), np.zeros((0, num), np.int64)
    close_RS, place_RS = jax.jit(lambda x: jax.lax.map(best, x, batch_size=_BATCH))(new_RC)
    return np.asarray(close_RS), among[np.asarray(place_RS)]


def _check_meanings(old_table: Sequence[bytes], new_table: Sequence[bytes], old_VC: Any, new_VC: Any) -> None:
    old, new = np.shape(old_VC), np.shape(new_VC)
    if len(old) != 2 or len(new) != 2 or (old[0], new[0]) != (len(old_table), len(new_table)):
        raise InputError(
            f"meanings of the shapes {list(old)} and {list(new)} for {len(old_table)} old and {len(new_table)} new "
            "tokens: give one row each"
        )
    if old[1] != new[1]:
        raise InputError(f"old meanings have {old[1]} dimensions and new ones {new[1]}: take those of one model")


def _check_settings(most: int, share: float, temperature: float, neighbours: int) -> None:
    if not (0 <= share <= 1 and temperature > 0 and 1 <= neighbours <= most):
        raise InputError(
            f"share is {share}, temperature {temperature}, neighbours {neighbours}: they must lie in 0 to 1, above 0, "
            f"and in 1 to {most}"
        )
