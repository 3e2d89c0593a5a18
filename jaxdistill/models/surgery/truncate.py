"""Truncation: a model of some layers of another, with its embeddings, last norm and head."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.surgery.arrays import operate
from jaxdistill.models.surgery.patterns import check
from jaxdistill.models.transformer import Config, Params


def truncate(config: Config, params: Params, keep: Sequence[int]) -> tuple[Config, Params]:
    """The model of the layers in `keep`, as `patterns` has them, and its fresh parameters.

    InputError where `keep` or the parameters are not those of a model of `config`.
    """
    check(keep, config.num_layers)
    return config_of_layers(config, keep), truncate_tree(params, keep, config.num_layers)


def truncate_tree(tree: Any, keep: Sequence[int], num_layers: int) -> Any:
    """A tree with the kept layers of everything that is stacked below `layers`, and a copy of all else.

    Parameters, the moments of an optimizer, and the `step.State` that has both: moments of the kept layers are carried
    to the bit, those of the others go. InputError where something stacked does not have `num_layers` layers.
    """
    check(keep, num_layers)
    check_stacked(tree, num_layers)
    kept = np.asarray(keep)

    def cut(xp, tree):
        return map_layers(lambda name, x: xp.take(x, kept, axis=0, mode="clip"), xp.copy, tree)

    return operate(cut, tree)


def config_of_layers(config: Config, layers: Sequence[int]) -> Config:
    """The configuration of a model whose layers are these of `config`, in this order: windows go with their layers."""
    changes: dict[str, Any] = {"num_layers": len(layers)}
    attention = config.design.attention
    window = attention.window
    if window is not None and window.layers is not None:
        local = tuple(i for i, n in enumerate(layers) if n in window.layers)
        attention = dataclasses.replace(attention, window=dataclasses.replace(window, layers=local))
        changes["design"] = dataclasses.replace(config.design, attention=attention)
    return dataclasses.replace(config, **changes)


def is_stacked(path: Any) -> bool:
    """Whether the array at this tree path has the layers in front: it lies below the key `layers`."""
    return dims.STACKED in [dims.key_name(key) for key in path[:-1]]


def map_layers(on_stacked: Callable[[str, Any], Any], on_others: Callable[[Any], Any], tree: Any) -> Any:
    """A tree with on_stacked(name, x) of every array that has the layers in front, and on_others(x) of the rest."""

    def visit(path, x):
        return on_stacked(dims.key_name(path[-1]), x) if is_stacked(path) else on_others(x)

    return jax.tree_util.tree_map_with_path(visit, tree)


def check_stacked(tree: Any, num_layers: int) -> None:
    """InputError where an array below `layers` does not have `num_layers` of them."""
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if is_stacked(path) and x.shape[:1] != (num_layers,):
            name = "/".join(map(dims.key_name, path))
            raise InputError(
                f"{name} has the shape {list(x.shape)}, and not {num_layers} layers in front: "
                "take parameters and configuration of one model"
            )
