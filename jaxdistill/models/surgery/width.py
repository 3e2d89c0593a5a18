"""Width pruning (Minitron, arXiv 2407.14679): fewer heads, fewer channels of the MLPs, fewer channels of the stream.

The letters in the names of parameters say which of their dimensions a choice cuts. A choice is an array of the indices
that stay, ascending, by letter:

    "J"  [N, kept]               key/value heads of each layer, each with all query heads that share it
    "F"  [N, kept], [N, E, kept] channels of each layer's MLP, or of each expert
    "D"  [kept]                  channels of the stream, which all layers share
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.design import Experts, RMSNorm
from jaxdistill.models.surgery.arrays import operate
from jaxdistill.models.surgery.truncate import check_stacked, is_stacked
from jaxdistill.models.transformer import Config, Params

Choice = Mapping[str, np.ndarray]


def choose(importance: Any, size: int) -> np.ndarray:
    """The indices of the `size` largest along the last dimension, ascending, int [..., size]; of equals the first."""
    importance = np.asarray(importance)
    if not 1 <= size <= importance.shape[-1]:
        raise InputError(f"{size} of {importance.shape[-1]} are to be kept: keep at least 1 and at most all")
    if not np.all(np.isfinite(importance)):
        raise InputError("an importance that is not finite orders nothing: measure it again")
    order = np.argsort(-importance, axis=-1, kind="stable")
    return np.sort(order[..., :size], axis=-1)


def prune(config: Config, params: Params, choice: Choice) -> tuple[Config, Params]:
    """The model of the chosen heads and channels, and its fresh parameters.

    What carries nothing can go without any change: a norm takes its mean over fewer channels and our own head divides
    by the width, so where channels of the stream go, gains make up for both (Minitron, which trains on, cuts alone).
    LayerNorm also takes away the mean; there a channel carries nothing where it is equal to it.

    InputError where the choice does not fit the model.
    """
    small = prune_config(config, choice)
    check_stacked(params, config.num_layers)
    choice = _with_query_heads(config, choice)

    def cut(xp, tree):
        def visit(path, x):
            own = ("N" if is_stacked(path) else "") + dims.letters(dims.key_name(path[-1]))
            for axis, letter in enumerate(own):
                if letter in choice:
                    x = _take(xp, x, own, axis, choice[letter])
            return _gain(xp, path, x, config, small)

        return jax.tree_util.tree_map_with_path(visit, tree)

    return small, operate(cut, params)


def prune_config(config: Config, choice: Choice) -> Config:
    """The configuration that `prune` gives, without any parameters; errors as there.

    `base_width` stays, so that a narrower stream raises the learning rate of hidden matrices as it does for any width.
    """
    _check(config, choice)
    sizes = {letter: np.shape(ids)[-1] for letter, ids in choice.items()}
    groups = sizes.get("J", config.num_kv_heads)
    return dataclasses.replace(
        config,
        num_kv_heads=groups,
        num_heads=groups * (config.num_heads // config.num_kv_heads),
        mlp_width=sizes.get("F", config.mlp_width),
        width=sizes.get("D", config.width),
    )


def _with_query_heads(config: Config, choice: Choice) -> Choice:
    """The choice, with "H": the query heads of the chosen groups, [N, kept]."""
    if "J" not in choice:
        return choice
    shared = config.num_heads // config.num_kv_heads
    heads = np.asarray(choice["J"])[..., None] * shared + np.arange(shared)
    return {**choice, "H": heads.reshape(config.num_layers, -1)}


def _take(xp: Any, x: Any, own: str, axis: int, ids: np.ndarray) -> Any:
    """Index one dimension of x, whose letters are `own`, by indices that differ from layer to layer, or do not."""
    ids = np.asarray(ids)
    if ids.ndim == 1:
        return xp.take(x, ids, axis=axis, mode="clip")
    lead = dict(zip("NE", ids.shape[:-1], strict=False))
    shape = [ids.shape[-1] if n == axis else lead.get(letter, 1) for n, letter in enumerate(own)]
    return xp.take_along_axis(x, ids.reshape(shape), axis=axis)


def _gain(xp: Any, path: Any, x: Any, config: Config, small: Config) -> Any:
    """What makes up for the width: sqrt(D / kept) in every gain, and our own head's 1 / D in the last norm."""
    name, norm = dims.key_name(path[-1]), config.design.norm
    is_gain, factor = name.endswith("norm_D"), 1.0
    if is_gain:
        factor = math.sqrt(config.width / small.width)
    if name in ("norm_D", "norm_bias_D") and not is_stacked(path) and config.design.logit_scale is None:
        factor *= small.width / config.width
    if factor == 1:
        return xp.copy(x)
    offset = 1 if is_gain and isinstance(norm, RMSNorm) and norm.unit_offset else 0
    return ((x + offset) * factor - offset).astype(x.dtype)


def _check(config: Config, choice: Choice) -> None:
    """InputError unless every array of the choice indexes its dimension, ascending."""
    sizes = {"J": config.num_kv_heads, "F": config.mlp_width, "D": config.width}
    for letter, ids in choice.items():
        if letter not in sizes:
            raise InputError(f"{letter} cannot be pruned: choose among {', '.join(sizes)}")
        ids, lead = np.asarray(ids), _lead(config, letter)
        if not np.issubdtype(ids.dtype, np.integer) or not ids.size or ids.ndim == 0 or ids.shape[:-1] not in lead:
            expected = " or ".join(f"[{', '.join(map(str, (*shape, 'kept')))}]" for shape in lead)
            raise InputError(
                f"the choice of {letter} is {ids.dtype} of the shape {list(ids.shape)}: give indices, {expected}"
            )
        if np.any(ids < 0) or np.any(ids >= sizes[letter]) or np.any(np.diff(ids, axis=-1) <= 0):
            raise InputError(
                f"the choice of {letter} must be ascending indices below {sizes[letter]}, each of them once"
            )


def _lead(config: Config, letter: str) -> list[tuple[int, ...]]:
    """What may be in front of the indices of a letter: nothing, the layers, the layers and their experts."""
    mlp, layers = config.design.mlp, config.num_layers
    if letter == "D":
        return [()]
    return [(layers,), (layers, mlp.num)] if letter == "F" and isinstance(mlp, Experts) else [(layers,)]
