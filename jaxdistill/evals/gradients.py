"""Two objectives compared by the direction and the size of the gradients they give a student.

A random target is unbiased where its gradient, averaged over many draws, is that of the whole distribution (Sparse
Logit Sampling, arXiv 2503.16870, Table 3). One batch does not show that: where the tokens' gradients point everywhere,
signal and noise both grow as the root of the batch. So gradients are averaged over batches first and compared then;
the same batch given several times counts as so many draws of its target.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.linear_heads import Sharding, token_weights, weighted_sum
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.teacher import make_target, token_index


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One gradient beside another.

    Attributes:
      angle: between them, in degrees, from 0 to 180.
      ratio: norm of the first over norm of the second.
      batches: that each is the mean of.
    """

    angle: float
    ratio: float
    batches: int


def make_gradient(
    model: Any,
    objective: Mapping[str, Term],
    teachers: Mapping[str, Any],
    keep: Callable | None = None,
    *,
    sharding: Sharding = Sharding(),
    **streaming: Any,
) -> Callable[..., Any]:
    """gradient(params, teacher_params, batch, key) -> that of the mean loss per token, a tree like the parameters.

    Args:
      model: the student.
      objective: terms on logits by name; a schedule counts as it begins, and no controllers are at work.
      teachers: frozen models by name, as for `step.make_step`; `teacher_params` has the same names.
      keep: what of the teacher's distribution becomes the target; a random choice follows `key`.
      sharding: how tokens and vocabulary lie on the devices.
      **streaming: as for `linear_heads.weighted_sum`.

    Raises InputError for terms on hidden states and for coefficients that a controller gives.
    """
    terms, target_of = Objective.of(objective), make_target(teachers, keep, sharding)
    if on_states := terms.split().states.names:
        raise InputError(f"{on_states[0]} compares hidden states; gradients are compared between terms on logits")
    if steered := [name for name, term in objective.items() if isinstance(term.coef, str)]:
        raise InputError(f"{steered[0]} takes its coefficient from a controller; give it a number to compare gradients")
    coef = {name: term.at(0, 1) for name, term in objective.items()}

    def loss(params: Any, target: Any, batch: Any) -> Array:
        h_BLD, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
        head, weight_BL = model.head(params, h_BLD), batch.weight_BL
        signals = {"segment": batch.segment_BL, **batch.signals}
        knobs = coef | {name: x_BL for name, x_BL in batch.signals.items() if name.endswith("_BL")}
        weights = token_weights(terms, head, target, weight_BL, knobs, signals, sharding=sharding)
        total, _ = weighted_sum(terms, head, target, weight_BL, knobs, weights=weights, sharding=sharding, **streaming)
        return total / jnp.sum(weight_BL)

    def gradient(params: Any, teacher_params: Any, batch: Any, key: Array) -> Any:
        target, _ = target_of(teacher_params, batch, key, token_index(batch))
        return jax.grad(loss)(params, target, batch)

    return gradient


def compare(
    first: Callable[[Any, Array], Any], second: Callable[[Any, Array], Any], batches: Iterable[Any], seed: int = 0
) -> Comparison:
    """The mean gradients of two objectives on the same batches, one beside the other.

    Args:
      first, second: (batch, key) -> gradient, such as `make_gradient` gives with its parameters put in.
      batches: at least one; every one of them gets a key of its own, also where it comes twice.
      seed: of the keys.

    Raises InputError where there are no batches, or one of the gradients is zero and has no direction.
    """
    sums, count = None, 0
    for count, batch in enumerate(batches, 1):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), count)
        both = first(batch, key), second(batch, key)
        sums = both if sums is None else jax.tree.map(jnp.add, sums, both)
    if sums is None:
        raise InputError("there are no batches to compare gradients on")
    a, b = (np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]) for tree in sums)
    norms = np.linalg.norm(a), np.linalg.norm(b)
    if not min(norms) > 0:
        raise InputError("a gradient is zero and has no direction: compare objectives with something left to learn")
    return Comparison(_angle(a / norms[0], b / norms[1]), float(norms[0] / norms[1]), count)


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    """Between unit vectors, in degrees; precise for small angles too, where the arc cosine is not (Kahan 2006)."""
    return math.degrees(2 * math.atan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))
