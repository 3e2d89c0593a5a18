"""The letters: one table of dimension names, from which shapes, shardings and checks follow.

An array whose shape is known ends in its letters: `h_BLD`, `q_DHK`. Parameters are named the same way, and those below
the key `layers` are stacked, so they carry a leading `N` that the name of the single layer does not show:
`params["layers"]["attention"]["q_DHK"]` has the shape NDHK.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

LETTERS: Mapping[str, str] = {
    "B": "sequences",
    "L": "positions",
    "M": "key positions",
    "T": "tokens (B x L)",
    "D": "width",
    "C": "teacher width",
    "N": "layers",
    "H": "query heads",
    "J": "key/value heads",
    "K": "head size",
    "F": "mlp width",
    "V": "vocabulary",
    "S": "kept teacher entries per token",
    "E": "experts",
    "P": "learned positions",
    "A": "input and label of a place",
    "R": "rank of adapters",
    "G": "subwords of the input",
    "Y": "bytes of a subword",
}

STACKED = "layers"


def letters(name: str) -> str:
    """The letters at the end of a name: `q_DHK` gives `DHK`, `step` gives the empty string (a scalar).

    Raises ValueError when the suffix is written in capitals and uses a letter that the table does not have.
    """
    stem, _, suffix = name.rpartition("_")
    if not stem or not suffix.isupper():
        return ""
    if unknown := sorted(set(suffix) - LETTERS.keys()):
        raise ValueError(f"{name}: no dimension is called {', '.join(unknown)}; the letters are {''.join(LETTERS)}")
    return suffix


def key_name(key: Any) -> str:
    """The name in one entry of a tree path, whichever container it comes from."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def per_token(path: Any) -> bool:
    """Whether the array at this tree path has one entry a token: its letters start with `BL`."""
    return letters(key_name(path[-1])).startswith("BL")


def leaves(tree: Any) -> Iterator[tuple[str, str, Any]]:
    """Every array of a tree as (path, letters, array); stacked layers show their leading `N`."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [key_name(key) for key in path]
        own = letters(names[-1]) if names else ""
        yield "/".join(names), ("N" + own if STACKED in names[:-1] and own else own), leaf


def tree_letters(tree: Any) -> Any:
    """A tree of the same structure whose leaves are the letters of the arrays."""
    return jax.tree.unflatten(jax.tree.structure(tree), [own for _, own, _ in leaves(tree)])


def check(tree: Any, sizes: Mapping[str, int], what: str = "parameters") -> None:
    """Hold every array of `tree` against the sizes of its letters.

    Raises ValueError that names the first array whose shape is another one, and the dimension that differs.
    """
    for path, own, leaf in leaves(tree):
        shape = tuple(leaf.shape)
        expected = tuple(sizes[letter] for letter in own)
        if shape != expected:
            differs = [
                f"{letter} ({LETTERS[letter]}) is {got}, not {want}"
                for letter, got, want in zip(own, shape, expected, strict=False)
                if got != want
            ]
            detail = "; ".join(differs) or f"it has {len(shape)} dimensions, its name says {len(own)}"
            raise ValueError(f"{what} {path}: shape {shape} where the model has {expected}: {detail}")
