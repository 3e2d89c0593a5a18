"""One step.

target   = teacher(batch)                                   outside the gradient
h_BLD    = student.hidden(tokens)
total    = sum_t weight_t sum_k coef_k loss_k(logits_t)     streamed, logits a chunk at a time
gradient = d total / count                                  one division, after every micro-batch is added
state'   = optimizer(state, gradient)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdistill import dims
from jaxdistill.losses import reduce
from jaxdistill.losses.linear_heads import weighted_sum
from jaxdistill.losses.objective import Objective
from jaxdistill.teacher import make_target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything that changes: number of steps taken (int32), parameters, optimizer moments."""

    step: Array
    params: Any
    opt: Any


def init_state(model, optimizer, key: Array) -> State:
    """The state before the first step. Trace it under jit with the shardings you want: it is then born sharded."""
    params = model.init(key)
    return State(jnp.zeros((), jnp.int32), params, optimizer.transform().init(params))


def micro_batches(batch: Any, number: int) -> Any:
    """[B, ...] -> [number, B / number, ...] by every number-th row, so that each device has rows in each part."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, number, *x.shape[1:]), 1, 0), batch)


def make_step(
    model, optimizer, objective: Objective, *, teacher=None, accumulate: int = 1, **streaming: Any
) -> Callable:
    """step(state, teacher_params, batch, rates, coef) -> (state, metrics), to be compiled with jax.jit.

    Args:
      model: the student.
      optimizer: gives `transform` and `apply`, as `optim.AdamW` does.
      objective: terms by name; `coef` of the step has a number for each.
      teacher: a model, or None.
      accumulate: micro-batches a batch is cut into; sums and counts add, so uneven and empty rows stay exact.
      **streaming: `mode`, `implementation`, `positions` and `sharding` of `linear_heads.weighted_sum`.

    The metrics are fp32 scalars: the mean of each term, "loss", "grad_norm" and the count "tokens".
    """
    transform, target_of = optimizer.transform(), make_target(teacher)

    def loss(params, target, batch, coef):
        h_BLD, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
        head = model.head(params, h_BLD)
        total, values = weighted_sum(objective, head, target, batch.weight_BL, coef, **streaming)
        return total, reduce.sums(values, batch.weight_BL)

    def step(state: State, teacher_params: Any, batch: Any, rates: dict, coef: dict) -> tuple[State, dict[str, Array]]:
        def add(carry, part):
            grads, totals = carry
            target = target_of(teacher_params, part)
            (total, sums), part_grads = jax.value_and_grad(loss, has_aux=True)(state.params, target, part, coef)
            return (jax.tree.map(jnp.add, grads, part_grads), reduce.add(totals, sums | {"loss": total})), None

        zero_totals = dict.fromkeys([*objective.names, "loss", "tokens"], jnp.float32(0))
        zero = (jax.tree.map(jnp.zeros_like, state.params), zero_totals)
        (grads, totals), _ = jax.lax.scan(add, zero, micro_batches(batch, accumulate))
        metrics = reduce.means(totals)
        grads = jax.tree.map(lambda g: g / reduce.divisor(metrics["tokens"]), grads)
        direction, opt = transform.update(grads, state.opt, state.params)
        multipliers = jax.tree.map(model.config.lr_multiplier, dims.tree_letters(state.params))
        params = optimizer.apply(state.params, direction, rates, multipliers)
        return State(state.step + 1, params, opt), metrics | {"grad_norm": optax.tree.norm(grads)}

    return step


def make_eval(model, objective: Objective, *, teacher=None, **streaming: Any) -> Callable:
    """evaluate(params, teacher_params, batch) -> sums of every term and the count, to be added over batches."""
    target_of, coef = make_target(teacher), dict.fromkeys(objective.names, 1.0)

    def evaluate(params: Any, teacher_params: Any, batch: Any) -> dict[str, Array]:
        h_BLD, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
        head, target = model.head(params, h_BLD), target_of(teacher_params, batch)
        _, values = weighted_sum(objective, head, target, batch.weight_BL, coef, **streaming)
        return reduce.sums(values, batch.weight_BL)

    return evaluate
