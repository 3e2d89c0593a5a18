"""Running a surgery on whatever holds the arrays: JAX, NumPy, or shapes alone."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def operate(function: Callable, *trees: Any) -> Any:
    """function(xp, *trees), with xp the NumPy of the trees; it must give only arrays that it made, as `xp.copy` does.

    Trees of `jax.ShapeDtypeStruct` give the same, and nothing is computed or stored; trees of NumPy arrays stay on the
    host. Anything else goes through one compiled program, whose results lie on devices as its arguments do; a dimension
    that is cut where devices share it may come out whole on each of them.
    """
    leaves = jax.tree.leaves(trees)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
        return jax.eval_shape(functools.partial(function, jnp), *trees)
    if all(isinstance(x, np.ndarray | np.generic) for x in leaves):
        return function(np, *trees)
    return jax.jit(functools.partial(function, jnp))(*trees)
