"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): y = x W + scale (x A) B, where W stays as it was.

An adapted model has two leaves more beside each matrix of its layers: `q_a_DR` and `q_b_RHK` beside `q_DHK`, where R is
the rank. They can lie in a tree of their own that `join` puts together with the rest, so that only they are trained.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdistill import dims
from jaxdistill.errors import InputError

ADAPTED = ("q", "k", "v", "o", "gate", "up", "down")  # all matrices of a layer, as in the study of ALM


def join(tree: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two nested dicts without a common leaf as one."""
    both = {name: join(tree[name], other[name]) for name in tree.keys() & other.keys()}
    return {**tree, **other, **both}


def divide(tree: dict[str, Any], chosen: Callable[[tuple[str, ...]], bool], *path: str) -> tuple[dict, dict]:
    """What `join` puts together: the leaves whose keys are chosen, and the others; no empty dicts."""
    parts: tuple[dict, dict] = {}, {}
    for name, x in tree.items():
        if isinstance(x, dict):
            for part, own in zip(parts, divide(x, chosen, *path, name), strict=True):
                part |= {name: own} if own else {}
        else:
            parts[not chosen((*path, name))][name] = x
    return parts


def fresh(key: Array, params: dict[str, Any], rank: int) -> dict[str, Any]:
    """Adapters of every matrix in the layers of `params`, fp32: A ~ N(0, 1 / rank^2) and B = 0, which change nothing.

    Raises InputError for a model whose layers have matrices of another kind.
    """
    adapters: dict[str, Any] = {}
    for place, (path, own, leaf) in enumerate(dims.leaves({dims.STACKED: params[dims.STACKED]})):
        *parents, name = path.split("/")
        if "E" in own:
            raise InputError("adapters are for layers without a mixture of experts: train all of this model")
        if name.partition("_")[0] not in ADAPTED or len(own) < 3 or "bias" in name:
            continue
        inner = len(own) - 2 if own.endswith("D") else 1  # letters of the input; a matrix leads to the width or from it
        stack, into, out = leaf.shape[:1], leaf.shape[1 : 1 + inner], leaf.shape[1 + inner :]
        a_name, b_name = names(name)
        a = jax.random.normal(jax.random.fold_in(key, place), (*stack, *into, rank)) / rank
        part = adapters
        for parent in parents:
            part = part.setdefault(parent, {})
        part |= {a_name: a, b_name: jnp.zeros((*stack, rank, *out))}
    return adapters


def names(matrix: str) -> tuple[str, str]:
    """The names of A and B: "o_HKD" has "o_a_HKR" and "o_b_RD"."""
    stem, _, own = matrix.rpartition("_")
    inner = len(own) - 1 if own.endswith("D") else 1
    return f"{stem}_a_{own[:inner]}R", f"{stem}_b_R{own[inner:]}"


def add_adapter(out: Array, x: Array, module: nnx.Module, matrix: str) -> Array:
    """`out` = x W plus what the module's adapter of W makes of x, in the dtype of `out`; `out` where it has none."""
    a_name, b_name = names(matrix)
    if not hasattr(module, a_name):
        return out
    a, b = (getattr(module, name)[...].astype(x.dtype) for name in (a_name, b_name))
    return out + jnp.tensordot(jnp.tensordot(x, a, axes=a.ndim - 1), b, axes=1)


def attach(module: nnx.Module, adapters: dict[str, Any], scale: float) -> None:
    """Give the parts of one layer their adapters, B times the scale."""
    for part, leaves in adapters.items():
        for name, x in leaves.items():
            factor = scale if "_b_" in name else 1.0
            setattr(getattr(module, part), name, nnx.Param(x if factor == 1 else factor * x))


def is_adapter(path: tuple[str, ...]) -> bool:
    """Whether the leaf at these keys is an A or a B."""
    return "R" in dims.letters(path[-1])


def fold(params: dict[str, Any], scale: float) -> dict[str, Any]:
    """The plain model that an adapted one is: W + scale A B, in the dtype of W."""
    adapters, plain = divide(params, is_adapter)

    def merged(path: tuple[Any, ...], w: Array) -> Array:
        keys = [key.key for key in path]
        part = adapters
        for key in keys[:-1]:
            part = part.get(key, {})
        a_name, b_name = names(keys[-1]) if dims.letters(keys[-1]) else ("", "")
        if a_name not in part:
            return w
        product = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))(part[a_name], part[b_name])
        return (w + scale * product).astype(w.dtype)

    with jax.default_matmul_precision("float32"):
        return jax.tree_util.tree_map_with_path(merged, plain)
