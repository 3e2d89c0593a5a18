"""Scores: the means over a corpus of what its tokens tell, exact whatever the number of batches or devices."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.evals.calibration import BINS, Reliability, bin_sums
from jaxdistill.evals.per_token import per_token
from jaxdistill.losses import reduce
from jaxdistill.losses.linear_heads import Sharding

STUDENT, TEACHER = "", "teacher_"  # what the names of their numbers begin with


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model is worth on some text.

    Attributes:
      tokens: how many counted.
      mean: of every number of `per_token`, by name; nats per token, or shares from 0 to 1.
      reliability: of the model and, where there is one, of its teacher: "model" and "teacher".
    """

    tokens: float
    mean: Mapping[str, float]
    reliability: Mapping[str, Reliability]


def make_sums(
    model: Any, teacher: Any = None, *, bins: int = BINS, sharding: Sharding = Sharding(), positions: int | None = None
) -> Callable[..., dict[str, Any]]:
    """sums(params, teacher_params, batch) -> what `score` adds over batches, to be compiled with jax.jit.

    Args:
      model: with `hidden` and `head`, as the step takes it.
      teacher: another one of the same vocabulary, or None; `teacher_params` is then not looked at.
      bins: of the reliability diagrams.
      sharding, positions: as for `per_token`.
    """
    if bins < 1:
        raise InputError(f"bins is {bins}; a reliability diagram needs at least 1")

    def sums(params: Any, teacher_params: Any, batch: Any) -> dict[str, Any]:
        own = head_of(model, params, batch)
        other = None if teacher is None else head_of(teacher, teacher_params, batch)
        values = per_token(own, batch.label_BL, other, positions=positions, sharding=sharding)
        weight_BL = batch.weight_BL
        values = {name: jnp.where(weight_BL != 0, value_BL, 0) for name, value_BL in values.items()}

        def bins_of(who: str) -> dict[str, Array]:
            return bin_sums(values[f"{who}confidence"], values[f"{who}correct"], weight_BL, bins)

        diagrams = {"model": bins_of(STUDENT)} | ({} if teacher is None else {"teacher": bins_of(TEACHER)})
        return {"mean": reduce.sums(values, weight_BL), "bins": diagrams}

    return sums


def head_of(model: Any, params: Any, batch: Any) -> Any:
    """The Head of a model on a batch."""
    h_BLD, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
    return model.head(params, h_BLD)


def score(sums_of: Callable[[Any], Any], batches: Iterable[Any]) -> Scores:
    """The scores of all batches together.

    Args:
      sums_of: batch -> what `make_sums` gives for it. Its fp32 sums are added in fp64, in which they stay exact.
      batches: at least one.

    Raises InputError where no token of them counts.
    """
    total: Any = None
    for batch in batches:
        part = jax.tree.map(lambda x: np.asarray(x, np.float64), sums_of(batch))
        total = part if total is None else jax.tree.map(np.add, total, part)
    if total is None or not total["mean"]["tokens"] > 0:
        raise InputError("there is no token to score: give documents of two tokens or more")
    tokens = float(total["mean"].pop("tokens"))
    mean = {name: float(value) / tokens for name, value in total["mean"].items()}
    return Scores(tokens, mean, {who: Reliability.of(bins) for who, bins in total["bins"].items()})
