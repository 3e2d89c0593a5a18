"""Shard: what a model asks of whoever lays it over devices, by letters alone, and the answer of one device.

A model calls `shard(x, "BLD")` to say where an activation belongs, and leaves the rest to the compiler. What a compiler
would do badly, it writes for one device's part, with `shard.local`. `parallel.rules` answers for a mesh.
"""

from collections.abc import Callable

import jax
from jax import Array


class Shard:
    """One device, which holds everything."""

    def __call__(self, x: Array, own: str) -> Array:
        """`x`, with the letters `own`, in its place."""
        return x

    def axes(self, letter: str, own: str = "") -> tuple[str, ...]:
        """The mesh axes that split a dimension, in arrays with the letters `own` (default: the letter alone)."""
        return ()

    def local(self, function: Callable[..., Array], out: str, *, opaque: bool = False, **arrays: Array) -> Array:
        """function(**arrays) on each device's part of the arrays, which end in their letters; `out` are the result's.

        Inside, collectives over `axes` join the parts. A dimension of size 1 is whole on every device.
        An `opaque` function has kernels, of which JAX cannot tell on which axes their results differ.
        """
        return function(**arrays)

    def gather(self, x: Array, own: str, letter: str) -> Array:
        """A device's part of an array, with one dimension whole; inside `local`."""
        axes = self.axes(letter, own)
        return jax.lax.all_gather(x, axes, axis=own.index(letter), tiled=True) if axes else x

    def sum(self, x: Array, axes: tuple[str, ...]) -> Array:
        """The parts of all devices along these axes together; inside `local`."""
        return jax.lax.psum(x, axes) if axes else x

    def parts(self, letter: str, own: str = "") -> int:
        """How many parts those axes cut it into."""
        return 1

    def part(self, letter: str, own: str = "") -> Array | int:
        """Which part of a split dimension this device has, counted from 0; inside `local`."""
        axes = self.axes(letter, own)
        return jax.lax.axis_index(axes) if axes else 0
