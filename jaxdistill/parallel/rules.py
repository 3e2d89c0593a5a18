"""The table from letters to mesh axes, and what follows from it: the sharding of every parameter, moment and
activation.

A name's letters are read from left to right; each claims its axes unless a letter before it has. So `BLD` is split over
its sequences, and `DHK`, which has none, over width and heads: one table serves activations, weights and their moments.
A letter without a rule is an error, never a silent replication.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxdistill import dims
from jaxdistill.errors import InputError

Rules = Mapping[str, tuple[str, ...]]

DEFAULT: Rules = {
    "B": ("data", "fsdp"),
    "L": (),
    "M": (),
    "D": ("fsdp",),
    "N": (),
    "H": ("tensor",),
    "J": ("tensor",),
    "K": (),
    "F": ("tensor",),
    "V": ("tensor",),
    "E": (),
    "P": (),
}
"""FSDP x tensor parallelism; with an axis of size 1 it is either alone, and with `data` it is HSDP."""


def spec(own: str, rules: Rules = DEFAULT) -> PartitionSpec:
    """The PartitionSpec of an array with these letters: spec("BLD") is P(("data", "fsdp"), None, None)."""
    entries, claimed = [], set()
    for letter in own:
        if letter not in rules:
            raise InputError(
                f"{own}: the sharding table has no rule for {letter} ({dims.LETTERS.get(letter, 'unknown')})"
            )
        axes = tuple(axis for axis in rules[letter] if axis not in claimed)
        claimed.update(axes)
        entries.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*entries)


def check(own: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh, name: str, rules: Rules = DEFAULT) -> None:
    """Raise InputError naming the first dimension that its mesh axes cannot divide."""
    for letter, size, entry in zip(own, shape, spec(own, rules), strict=True):
        axes = entry if isinstance(entry, tuple) else (entry,) if entry else ()
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if axes and size % parts:
            raise InputError(
                f"{name}: {letter} ({dims.LETTERS[letter]}) is {size}, which {parts} devices of mesh axis "
                f"{' x '.join(axes)} cannot share evenly; change the size or mesh.{axes[-1]}"
            )


def shardings(tree: Any, mesh: jax.sharding.Mesh, rules: Rules = DEFAULT) -> Any:
    """A NamedSharding for every array of a tree of named arrays (parameters, moments, state), checked to divide."""

    def place(path_letters_leaf):
        path, own, leaf = path_letters_leaf
        check(own, leaf.shape, mesh, path, rules)
        return NamedSharding(mesh, spec(own, rules))

    return jax.tree.unflatten(jax.tree.structure(tree), [place(entry) for entry in dims.leaves(tree)])


def constrain(mesh: jax.sharding.Mesh, rules: Rules = DEFAULT):
    """The `shard` function a model takes: shard(x, "BLD") pins an activation to its place."""
    if math.prod(mesh.shape.values()) == 1:
        return lambda x, own: x
    return lambda x, own: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(own, rules)))
