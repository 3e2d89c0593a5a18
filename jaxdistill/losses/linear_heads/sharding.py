"""How tokens and vocabulary lie on the devices, and the reductions that join them.

Each device streams its own sequences over its own columns of the vocabulary. What crosses between devices is the output
embedding once before the scan, its gradient once after, and a few numbers a token: never logits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jaxdistill import dims
from jaxdistill.losses.vocabulary import Vocabulary


class Gradient(NamedTuple):
    """The gradient of a sum over tokens in the arrays of a Head, fp32; `dbias_V` is None where the Head has no bias."""

    dh_BLD: Array
    dw_VD: Array
    dbias_V: Array | None


@dataclasses.dataclass(frozen=True)
class Sharding:
    """The mesh axes that share out what a head works on; the default is one device, or leaves it to the compiler.

    Attributes:
      mesh: the devices, or None.
      sequences: axes that split the sequences.
      positions: axes that split the positions of each.
      vocabulary: axes that split the rows of the output embedding.
      width: axes that split its columns at rest, among those that split tokens; they are gathered once before the scan.
    """

    mesh: jax.sharding.Mesh | None = None
    sequences: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    width: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """The axes whose devices hold other tokens."""
        return self.sequences + self.positions

    def size(self, axes: tuple[str, ...]) -> int:
        """The devices along these axes."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def splits_vocabulary(self) -> bool:
        """Whether a device holds a part of the vocabulary only; an axis of one device splits nothing."""
        return self.size(self.vocabulary) > 1

    def spec(self, own: str) -> PartitionSpec:
        """The place of an array with these letters: by its tokens, VD and V by vocabulary, others everywhere."""
        if own.startswith("BL"):
            return PartitionSpec(self.sequences or None, self.positions or None)
        axes = {"V": self.vocabulary or None, "D": self.width or None}
        return PartitionSpec(*(axes[c] for c in own if own in ("V", "VD")))

    def whole(self, z_BLV: Array) -> Array:
        """The logits with all their columns on every device that has their tokens, for what sorts them."""
        if self.mesh is None:
            return z_BLV
        return jax.lax.with_sharding_constraint(z_BLV, NamedSharding(self.mesh, self.spec("BLV")))

    def specs(self, tree: Any) -> Any:
        """The places of all arrays of a tree, by the letters of their names."""
        return jax.tree_util.tree_map_with_path(lambda path, _: self.spec(dims.letters(dims.key_name(path[-1]))), tree)

    def run(self, function: Callable, *trees: Any) -> Any:
        """function(self, vocabulary, *trees) on every device's part; inputs and outputs are placed by their letters."""
        if self.mesh is None:
            return function(self, Vocabulary(), *trees)

        def local(*trees):
            trees = jax.tree_util.tree_map_with_path(self._gather, trees)
            if not self.splits_vocabulary:
                return function(self, Vocabulary(), *trees)
            columns = next(x.shape[0] for _, own, x in dims.leaves(trees) if own == "VD")
            first = jax.lax.axis_index(self.vocabulary) * columns
            return function(self, Vocabulary(first, self.vocabulary), *trees)

        out = jax.eval_shape(functools.partial(function, LOCAL, Vocabulary()), *trees)
        in_specs, out_specs = self.specs(trees), self.specs(out)
        return jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*trees)

    def over_tokens(self, x: Any) -> Any:
        """The sum over the devices that hold other tokens; inside `run`."""
        return jax.lax.psum(x, self.tokens) if self.tokens else x

    def join(self, gradient: Gradient) -> Gradient:
        """The gradient of all tokens, split again as the parameters are at rest; inside `run`."""
        rest = tuple(axis for axis in self.tokens if axis not in self.width)
        dw_VD = gradient.dw_VD
        if self.width:
            dw_VD = jax.lax.psum_scatter(dw_VD, self.width, scatter_dimension=1, tiled=True)
        if rest:
            dw_VD = jax.lax.psum(dw_VD, rest)
        return Gradient(gradient.dh_BLD, dw_VD, self.over_tokens(gradient.dbias_V))

    def _gather(self, path: Any, x: Array) -> Array:
        """An output embedding with all its columns; any other array as it is."""
        if not self.width or dims.letters(dims.key_name(path[-1])) != "VD":
            return x
        return jax.lax.all_gather(x, self.width, axis=1, tiled=True)


LOCAL = Sharding()
