"""One step.

target   = teacher(batch)                                    outside the gradient
h_BLD    = student.hidden(tokens)
weights  = of terms that choose their tokens                 without gradient
total    = sum_t sum_k coef_k weight_kt loss_k(logits_t)     streamed, logits a chunk at a time
gradient = d total / count                                   one division, after every micro-batch is added;
                                                             of each term, where a combiner makes one of them
state'   = optimizer(state, gradient), controllers(metrics)
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdistill import dims
from jaxdistill.across import Marks, answers
from jaxdistill.alongside import both, compare
from jaxdistill.losses import reduce
from jaxdistill.losses.combiners import Combiner
from jaxdistill.losses.dual_space import Side
from jaxdistill.losses.linear_heads import Sharding, token_weights, weighted_sum
from jaxdistill.losses.objective import EXTRAS, Kinds, Objective
from jaxdistill.models.adapters import join
from jaxdistill.teacher import BASE, make_target, token_index

COMBINED = "combine"  # where the state of a combiner lies among those of controllers
NONE: Mapping[str, Any] = types.MappingProxyType({})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything that changes: number of steps taken (int32), parameters, optimizer moments, controllers."""

    step: Array
    params: Any
    opt: Any
    control: dict[str, Any] = dataclasses.field(default_factory=dict)


def init_state(model, optimizer, key: Array, controllers: Mapping[str, Any] = NONE, combined: Any = None) -> State:
    """The state before the first step. Trace it under jit with the shardings you want: it is then born sharded."""
    return state_of(model.init(key), optimizer, controllers, combined)


def state_of(params: Any, optimizer, controllers: Mapping[str, Any] = NONE, combined: Any = None) -> State:
    """The state before the first step, of given parameters; `combined` is that of a combiner."""
    control = {name: controller.init() for name, controller in controllers.items()}
    if combined:
        control[COMBINED] = combined
    return State(jnp.zeros((), jnp.int32), params, optimizer.transform().init(params), control)


def micro_batches(batch: Any, number: int) -> Any:
    """[B, ...] -> [number, B / number, ...] by every number-th row, so that each device has rows in each part."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, number, *x.shape[1:]), 1, 0), batch)


def whole_batch(parts: Any) -> Any:
    """[number, B / number, ...] -> [B, ...]: what `micro_batches` took apart."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def step_key(seed: int, step: Any) -> Array:
    """The key of what is random in a step. The generator is named: faster ones give a token other numbers in another
    batch."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)


def make_step(
    model,
    optimizer,
    objective: Objective,
    *,
    teachers: Mapping[str, Any] = NONE,
    keep: Callable | None = None,
    across: Callable | None = None,
    marks: Marks | None = None,
    controllers: Mapping[str, Any] = NONE,
    combine: Combiner | None = None,
    seed: int = 0,
    accumulate: int = 1,
    sharding: Sharding = Sharding(),
    teacher_sharding: Sharding | None = None,
    **streaming: Any,
) -> Callable:
    """step(state, teacher_params, batch, rates, coef) -> (state, metrics), to be compiled with jax.jit.

    Args:
      model: the student.
      optimizer: gives `transform` and `apply`, as `optim.AdamW` does.
      objective: terms by name; `coef` of the step has a number for each, and "steps", the length of the run, where
        there are controllers.
      teachers: frozen models by name, "teacher" among them, or none; `teacher_params` has the same names, and "base"
        for those parameters of the student that are not trained, where there are any.
      keep: what of the teacher's distribution becomes the target, as `teacher.Online.keep`.
      across: of a teacher with a tokenizer of its own, as `make_target` takes it.
      marks: of the student's ids, where chunks are compared.
      controllers: by name; their values are knobs that terms may read.
      combine: makes one gradient of those of the terms; None for their sum.
      seed: of a random `keep`.
      accumulate: micro-batches a batch is cut into; sums and counts add, so uneven and empty rows stay exact.
      sharding: how tokens and vocabulary lie on the devices.
      teacher_sharding: the same where `keep` looks at the teacher's head; None: as the student's.
      **streaming: `mode`, `implementation` and `positions` of `linear_heads.weighted_sum`.

    The metrics are fp32 scalars: the mean of each term, "loss", "grad_norm" and the count "tokens".
    """
    kinds = objective.split()
    parts = objective.parts(each=combine is not None)
    layers, teacher_layers = objective.layers()
    transform = optimizer.transform()
    target_of = make_target(teachers, keep, teacher_sharding or sharding, teacher_layers, across)

    def loss(params, base, targets, batch, knobs):
        params, (target, further) = join(params, base), targets
        h_BLD, kept = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL, keep=layers)
        head, weight_BL = model.head(params, h_BLD), batch.weight_BL
        knobs = knobs | {name: x_BL for name, x_BL in batch.signals.items() if name.endswith("_BL")}
        signals = {"segment": batch.segment_BL, **batch.signals, **further.signals}
        weights = token_weights(objective, head, target, weight_BL, knobs, signals, sharding=sharding)
        totals, values = dict.fromkeys(parts, jnp.float32(0)), {}
        for part, own in parts.items():
            if (on_logits := own.split().logits).terms:
                totals[part], more = weighted_sum(
                    on_logits, head, target, weight_BL, knobs, weights=weights, sharding=sharding, **streaming
                )
                values |= more
        aside = off_stream(kinds, params, head, kept, further, batch, marks, sharding=sharding, **streaming)
        for name, value_BL in aside.items():
            total = jnp.sum(objective.coef(name, knobs) * weights.get(name, weight_BL) * value_BL)
            totals[name if name in parts else "loss"] += total
        values |= aside
        return totals, reduce.sums(values, weight_BL)

    def step(state: State, teacher_params: Any, batch: Any, rates: dict, coef: dict) -> tuple[State, dict[str, Array]]:
        key, base = step_key(seed, state.step), teacher_params.get(BASE, {})
        knobs = coef | {name: controller.value(state.control[name]) for name, controller in controllers.items()}

        def add(carry, part):
            (grads, totals), (batch, index_BL) = carry, part
            targets = target_of(teacher_params, batch, key, index_BL)
            own, pull_back, sums = jax.vjp(lambda p: loss(p, base, targets, batch, knobs), state.params, has_aux=True)
            units = {part: {other: jnp.float32(other == part) for other in parts} for part in parts}
            more = {part: pull_back(unit)[0] for part, unit in units.items()}
            return (jax.tree.map(jnp.add, grads, more), reduce.add(totals, sums | {"loss": sum(own.values())})), None

        zero_totals = dict.fromkeys([*objective.names, "loss", "tokens"], jnp.float32(0))
        zero = ({part: jax.tree.map(jnp.zeros_like, state.params) for part in parts}, zero_totals)
        (grads, totals), _ = jax.lax.scan(add, zero, micro_batches((batch, token_index(batch)), accumulate))
        metrics = reduce.means(totals)
        grads = jax.tree.map(lambda g: g / reduce.divisor(metrics["tokens"]), grads)
        if combine is None:
            grads, combined, notes = grads["loss"], {}, {}
        else:
            grads, combined, notes = combine(grads, metrics, state.control.get(COMBINED, {}))
        direction, opt = transform.update(grads, state.opt, state.params)
        multipliers = jax.tree.map(model.config.lr_multiplier, dims.tree_letters(state.params))
        params = optimizer.apply(state.params, direction, rates, multipliers)
        control = {
            name: controller.update(state.control[name], metrics, state.step, coef["steps"])
            for name, controller in controllers.items()
        }
        control |= {COMBINED: combined} if combined else {}
        values = notes | {name: knobs[name] for name in controllers}
        return State(state.step + 1, params, opt, control), metrics | values | {"grad_norm": optax.tree.norm(grads)}

    return step


def off_stream(
    kinds: Kinds, params: Any, head: Any, kept: Any, further: Any, batch: Any, marks: Any, **how: Any
) -> dict[str, Array]:
    """{name: fp32 [B, L]} of the terms that are no sum over the student's logits, differentiable in parameters.

    `kept` are hidden states by layer, `how` the sharding and the streaming.
    """
    label_BL, weight_BL = batch.label_BL, batch.weight_BL
    on_chunks, on_places = ({name: term.loss for name, term in kind.terms} for kind in (kinds.chunks, kinds.places))
    values = {name: term.loss(kept, further.states, further.weight(weight_BL)) for name, term in kinds.states.terms}
    values |= answers(on_chunks, head, further.chunks, label_BL, weight_BL, marks=marks, **how)
    values |= compare(on_places, head, further.beside, label_BL, weight_BL, marks=marks, **how)
    for name, term in kinds.rows.terms:
        own = Side(head, both(params["embed_VD"], batch), label_BL, weight_BL)
        values[name] = term.loss(params[EXTRAS][name], own, further.beside, **how)
    return values


def make_eval(
    model,
    objective: Objective,
    *,
    teachers: Mapping[str, Any] = NONE,
    sharding: Sharding = Sharding(),
    **streaming: Any,
) -> Callable:
    """evaluate(params, teacher_params, batch) -> sums of every term and the count, to be added over batches."""
    target_of, coef = make_target(teachers), dict.fromkeys(objective.names, 1.0)

    def evaluate(params: Any, teacher_params: Any, batch: Any) -> dict[str, Array]:
        params = join(params, teacher_params.get(BASE, {}))
        h_BLD, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
        target, _ = target_of(teacher_params, batch, jax.random.key(0), token_index(batch))
        head, weight_BL = model.head(params, h_BLD), batch.weight_BL
        _, values = weighted_sum(objective, head, target, weight_BL, coef, sharding=sharding, **streaming)
        said = {name.removesuffix("_BL"): x for name, x in batch.signals.items() if name.startswith("teacher_")}
        return reduce.sums(values | said, weight_BL)

    return evaluate
