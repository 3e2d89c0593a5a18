"""The transplant: a model with the rows of another vocabulary in its embeddings, and everything else as it was."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.surgery.arrays import operate
from jaxdistill.models.transformer import Config, Params
from jaxdistill.models.transplant.fills import Fill
from jaxdistill.models.transplant.matching import NO_COPY

EMBED, HEAD = "embed_VD", "head_VD"


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Where the rows of a new vocabulary come from.

    Attributes:
      copies: int [V'], the old id of every new token, or NO_COPY; as `matching.match` gives them.
      embed: the fill of input rows without a copy, which of a tied model are the output rows too.
      head: the fill of output rows; for untied models, and for them alone.
    """

    copies: np.ndarray
    embed: Fill
    head: Fill | None = None


def transplant(config: Config, params: Params, plan: Plan) -> tuple[Config, Params]:
    """The model with the vocabulary of the plan, and its fresh parameters.

    Copied rows are the old ones to the bit, fills are computed in fp32 from the old rows without their padding, and
    the rows that pad the new vocabulary to a multiple of `vocab_multiple` are 0.

    InputError where the plan does not fit the model, or the parameters are not those of a model of `config`.
    """
    copies = _check(config, params, plan)
    fills = {EMBED: plan.embed, HEAD: plan.head}
    new = dataclasses.replace(config, vocab_size=len(copies))
    padding = new.padded_vocab_size - new.vocab_size

    def renew(xp, tree):
        def visit(path, x):
            fill = fills.get(dims.key_name(path[-1]))
            return xp.copy(x) if fill is None else _rows(xp, x[: config.vocab_size], copies, fill, padding)

        return jax.tree_util.tree_map_with_path(visit, tree)

    return new, operate(renew, params)


def untie(config: Config, params: Params) -> tuple[Config, Params]:
    """The model with an output layer of its own, equal to its embedding, and its fresh parameters.

    Byte-level students start so (arXiv 2503.20083, App. C): few rows, which then need not serve both ends. InputError
    for a model that has an output layer.
    """
    if not config.tied:
        raise InputError("this model is not tied: it has an output layer of its own already")
    untied = operate(lambda xp, tree: jax.tree.map(xp.copy, tree | {HEAD: tree[EMBED]}), params)
    return dataclasses.replace(config, tied=False), untied


def _rows(xp: Any, old_VD: Any, copies: np.ndarray, fill: Fill, padding: int) -> Any:
    """The new rows, [V' + padding, D], in the dtype of the old."""
    is_filled = copies == NO_COPY
    filled_RD = fill(xp, old_VD.astype(np.float32), int(is_filled.sum())).astype(old_VD.dtype)
    copied_VD = xp.take(old_VD, copies[~is_filled], axis=0, mode="clip")
    place_V = np.argsort(np.argsort(is_filled, kind="stable"))  # of each new id, where copies stand before fills
    zeros_VD = xp.zeros((padding, old_VD.shape[1]), old_VD.dtype)
    return xp.concatenate([xp.concatenate([copied_VD, filled_RD])[place_V], zeros_VD])


def _check(config: Config, params: Params, plan: Plan) -> np.ndarray:
    """The copies; InputError unless plan, configuration and parameters fit each other."""
    copies = np.asarray(plan.copies)
    if copies.ndim != 1 or not copies.size or not np.issubdtype(copies.dtype, np.integer):
        raise InputError(f"copies are {copies.dtype} of the shape {list(copies.shape)}: give an old id for every token")
    if wrong := sorted(set(copies[(copies < NO_COPY) | (copies >= config.vocab_size)].tolist())):
        raise InputError(
            f"the id {wrong[0]} is to be copied, of a model whose ids are 0 to {config.vocab_size - 1}: "
            "take copies and configuration of one vocabulary"
        )
    if config.tied != (plan.head is None):
        told = "leave plan.head out" if config.tied else "give plan.head a fill, the same or another"
        raise InputError(f"the output layer of this model is {'' if config.tied else 'not '}its embedding: {told}")
    for name in (EMBED,) if config.tied else (EMBED, HEAD):
        expected = (config.padded_vocab_size, config.width)
        if name not in params or params[name].shape != expected:
            got = list(params[name].shape) if name in params else "missing"
            raise InputError(
                f"{name} is {got}, and {list(expected)} in a model of this configuration: take parameters and "
                "configuration of one model"
            )
    return copies
