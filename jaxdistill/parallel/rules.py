"""Tables from letters to mesh axes, and what follows from one: the place of every parameter, moment and activation.

A name's letters are read from left to right; each claims its axes unless a letter before it has. So `BLD` is split over
its sequences, and `DHK`, which has none, over width and heads: one table serves activations, weights and their moments.
A letter without a rule is an error, never a silent replication.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.shard import Shard

Rules = Mapping[str, tuple[str, ...]]
Table = Literal["axes", "data", "fsdp", "tensor"]

DEFAULT: Rules = {
    "B": ("data", "fsdp", "expert"),
    "L": ("context",),
    "M": (),
    "D": ("fsdp", "context", "expert"),
    "N": (),
    "H": ("tensor",),
    "J": ("tensor",),
    "K": (),
    "F": ("tensor",),
    "V": ("tensor",),
    "E": ("expert",),
    "P": (),
    "A": (),
    "C": (),
    "R": (),
    "G": (),
    "Y": (),
}
"""Every axis does what it is called: the sizes of the mesh choose between data parallelism, FSDP, HSDP, tensor, context
and expert parallelism, and any product of them. Whatever splits tokens and not copies splits the width of weights."""

_ALONE = dict.fromkeys("DHJFVE", ())
_SEQUENCES = ("data", "fsdp", "expert", "tensor")

TABLES: Mapping[str, Rules] = {
    "axes": DEFAULT,
    "data": {**DEFAULT, **_ALONE, "B": _SEQUENCES},
    "fsdp": {**DEFAULT, **_ALONE, "B": _SEQUENCES, "D": ("fsdp", "context", "expert", "tensor")},
    "tensor": {**DEFAULT, **_ALONE, "B": ("data",), **dict.fromkeys("HJFV", ("fsdp", "expert", "tensor"))},
}
"""Beside it, other uses of a mesh, for a second model: parameters whole on every device, all of them gathered when they
are needed, or none of them ever gathered (docs/parallel.md)."""


def named(table: str) -> Rules:
    """The table of this name; InputError where there is none."""
    if table not in TABLES:
        raise InputError(f"there is no sharding table {table!r}; there are {', '.join(map(repr, TABLES))}")
    return TABLES[table]


def spec(own: str, rules: Rules = DEFAULT) -> PartitionSpec:
    """The PartitionSpec of an array with these letters: spec("NFD", DEFAULT) is P(None, "tensor", DEFAULT["D"])."""
    return PartitionSpec(*(axes[0] if len(axes) == 1 else axes or None for axes in _claims(own, rules)))


def _claims(own: str, rules: Rules) -> list[tuple[str, ...]]:
    claims: list[tuple[str, ...]] = []
    for letter in own:
        if letter not in rules:
            raise InputError(
                f"{own}: the sharding table has no rule for {letter} ({dims.LETTERS.get(letter, 'unknown')})"
            )
        claims.append(tuple(axis for axis in rules[letter] if not any(axis in before for before in claims)))
    return claims


def parts(own: str, mesh: jax.sharding.Mesh, rules: Rules = DEFAULT) -> tuple[int, ...]:
    """How many parts each dimension of an array with these letters is cut into."""
    return tuple(math.prod(mesh.shape[axis] for axis in axes) for axes in _claims(own, rules))


def check(own: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh, name: str, rules: Rules = DEFAULT) -> None:
    """Raise InputError naming the first dimension that its mesh axes cannot divide."""
    cut = zip(own, shape, _claims(own, rules), parts(own, mesh, rules), strict=True)
    for letter, size, axes, number in cut:
        if size % number:
            wide = [axis for axis in axes if mesh.shape[axis] > 1]
            raise InputError(
                f"{name}: {letter} ({dims.LETTERS[letter]}) is {size}, which {number} devices of mesh axis "
                f"{' x '.join(wide)} cannot share evenly; change the size or mesh.{wide[-1]}"
            )


def shardings(tree: Any, mesh: jax.sharding.Mesh, rules: Rules = DEFAULT) -> Any:
    """A NamedSharding for every array of a tree of named arrays (parameters, moments, state), checked to divide."""

    def place(path_letters_leaf):
        path, own, leaf = path_letters_leaf
        check(own, leaf.shape, mesh, path, rules)
        return NamedSharding(mesh, spec(own, rules))

    return jax.tree.unflatten(jax.tree.structure(tree), [place(entry) for entry in dims.leaves(tree)])


def of_batch(batch: Any, mesh: jax.sharding.Mesh, rules: Rules = DEFAULT) -> Any:
    """A NamedSharding for every array of a batch: by its sequences and, where it has one entry a token, its positions.

    Raises InputError where they cannot be shared out evenly.
    """

    def place(path, x):
        own = dims.letters(dims.key_name(path[-1])) if path else ""
        own = "B" if own and not own.startswith("BL") else "BL"  # signals need no letters
        check(own, x.shape[: len(own)], mesh, "a batch", rules)
        return NamedSharding(mesh, spec(own, rules))

    return jax.tree_util.tree_map_with_path(place, batch)


def constrain(mesh: jax.sharding.Mesh, rules: Rules = DEFAULT) -> Shard:
    """The `shard` that a model on this mesh takes."""
    return Shard() if mesh.size == 1 else OnMesh(mesh, rules)


@dataclasses.dataclass(frozen=True, eq=False)
class OnMesh(Shard):
    """The devices of a mesh, with one table."""

    mesh: jax.sharding.Mesh
    rules: Rules

    def __call__(self, x: Array, own: str) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec(own, self.rules)))

    def axes(self, letter: str, own: str = "") -> tuple[str, ...]:
        own = own or letter
        claimed = _claims(own, self.rules)[own.index(letter)]
        return tuple(axis for axis in claimed if self.mesh.shape[axis] > 1)

    def parts(self, letter: str, own: str = "") -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.axes(letter, own))

    def local(self, function: Callable[..., Array], out: str, *, opaque: bool = False, **arrays: Array) -> Array:
        def place(own: str, shape: tuple[int, ...] = ()) -> PartitionSpec:
            axes = (self.axes(letter, own) for letter in own)
            sizes = shape or (None,) * len(own)
            return PartitionSpec(*(None if size == 1 else a or None for a, size in zip(axes, sizes, strict=True)))

        specs = {name: place(dims.letters(name), x.shape) for name, x in arrays.items()}
        mapped = jax.shard_map(
            lambda arrays: function(**arrays),
            mesh=self.mesh,
            in_specs=(specs,),
            out_specs=place(out),
            check_vma=not opaque,
        )
        return mapped(arrays)
