"""`weighted_sum`: an objective over all tokens of a Head, every term in one pass over the vocabulary."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads import reference, terms
from jaxdistill.losses.linear_heads.divergence.api import alike, linear_divergence
from jaxdistill.losses.linear_heads.sharding import LOCAL, Sharding
from jaxdistill.losses.linear_heads.sparse.api import Mode, check_weights, known, linear_picks
from jaxdistill.losses.linear_heads.sparse.kernels import choose
from jaxdistill.losses.linear_heads.stream import streamed_sum
from jaxdistill.losses.objective import Knobs, Objective, Term
from jaxdistill.losses.targets import Dense, Target


def weighted_sum(
    objective: Objective,
    head: Head,
    target: Target,
    weight_BL: Array,
    knobs: Knobs,
    *,
    weights: Mapping[str, Array] | None = None,
    mode: Mode = "forward",
    implementation: Any = None,
    positions: int | None = None,
    sharding: Sharding = LOCAL,
) -> tuple[Array, dict[str, Array]]:
    """sum_t sum_k coef_k weight_kt loss_kt over all tokens, and the value of each term per token.

    Args:
      objective: what a token costs, as a function of its logits.
      head: hidden states [B, L, D] and the output embedding.
      target: what is known about the next tokens; its per-token arrays are [B, L, ...].
      weight_BL: fp32; a token of weight zero counts nowhere in value and gradient, whatever it holds.
      knobs: a coefficient for each term, and the values of controllers, by name.
      weights: of the terms that do not weigh tokens as the data does.
      mode: "forward" forms the gradient with the value; "recompute" keeps no logits, at the price of a fourth matmul
        pass a head, and serves sparse losses and divergences from a teacher's own distribution.
      implementation: None for the best on this platform, or as `linear_sparse` takes it, for the sparse terms.
      positions: positions of each sequence in a chunk; None takes `stream.default_positions`.
      sharding: how tokens and vocabulary lie on the devices.

    Returns:
      total: fp32 scalar, differentiable in `head`.
      values: {term: fp32 [B, L]}, zero where the weight is, without gradient.

    Raises:
      InputError: weights that are not fp32 [B, L], a mode or implementation that does not exist, a teacher of another
        vocabulary, or a target that does not tell what a loss needs.
    """
    known(mode, ("forward", "recompute"))
    check_weights(weight_BL, head)
    target = _fitting(target, head, always=mode == "recompute" or sharding.splits_vocabulary)
    head, target, knobs = blank((head, target, dict(knobs)), weight_BL)
    inputs = {"target": target, "weight_BL": weight_BL, "weights": dict(weights or {}), "knobs": knobs}
    inputs["weights"] = {f"{name}_BL": w_BL for name, w_BL in inputs["weights"].items()}
    if implementation == "reference":
        total, values = reference.weighted_sum(objective, head, inputs)
    elif mode == "recompute":
        total, values = _recomputed(objective, head, inputs, implementation, sharding)
    else:
        on_chunk = terms.OnChunk(objective, choose(implementation, mode))
        total, values = streamed_sum(on_chunk, head, inputs, positions=positions, sharding=sharding)
    return total, {name: jnp.where(weight_BL != 0, jax.lax.stop_gradient(v), 0) for name, v in values.items()}


def token_weights(
    objective: Objective,
    head: Head,
    target: Target,
    weight_BL: Array,
    knobs: Knobs,
    signals: Mapping[str, Array],
    *,
    sharding: Sharding = LOCAL,
) -> dict[str, Array]:
    """{term: fp32 [B, L]} for the terms that weigh tokens otherwise than the data does; no gradient passes.

    What they need to know of the tokens is found beforehand, in one pass over the heads for all of them; where no term
    asks for anything, nothing runs.

    Args:
      signals: per-token arrays of the batch by name, such as advantages.
      objective, head, target, weight_BL, knobs, sharding: as for `weighted_sum`.
    """
    weights = {name: term.weight for name, term in objective.terms if term.weight is not None}
    asked = {f"{name}/{key}": Term(loss) for name, w in weights.items() for key, loss in w.statistics().items()}
    found: dict[str, Array] = {}
    if asked:
        frozen, ones = jax.lax.stop_gradient(head), dict.fromkeys(asked, 1.0)
        _, found = weighted_sum(Objective.of(asked), frozen, target, weight_BL, {**knobs, **ones}, sharding=sharding)
    out = {}
    for name, weight in weights.items():
        own = {key.removeprefix(f"{name}/"): value for key, value in found.items() if key.startswith(f"{name}/")}
        out[name] = jax.lax.stop_gradient(weight(own, target, weight_BL, signals))
    return out


def _recomputed(objective: Objective, head: Head, inputs: Any, implementation: Any, sharding: Sharding):
    """The total from ops that keep no logits: one pass for all sparse terms of a temperature, one per divergence."""
    factor = terms.factors(objective, inputs)
    targets = {name: objective.target(name, inputs["target"], inputs["knobs"]) for name in factor}
    few, divergences, others = terms.split(objective)
    for name in others:
        raise InputError(
            f"{name} needs all logits of a token at once: mode 'recompute' cannot give them; use 'forward'"
        )
    total, values = jnp.float32(0), {}
    for T in dict.fromkeys(loss.temperature for loss in few.values()):
        here = {name: loss for name, loss in few.items() if loss.temperature == T}
        function, _, id_BLS = terms.together(here, targets, factor, head.h_BLD.shape[:2])
        lse_BL, z_BLS = linear_picks(head, id_BLS, temperature=T, implementation=implementation, sharding=sharding)
        loss_BL, here_values = function((lse_BL,), z_BLS)
        total, values = total + jnp.sum(loss_BL), values | here_values
    for name, loss in divergences.items():
        if not isinstance(targets[name], Dense):
            raise InputError(
                f"{name}: mode 'recompute' compares with a teacher's own distribution, not with a transform of it: "
                "use 'forward'"
            )
        more, values[name] = linear_divergence(
            loss,
            head,
            targets[name].head,
            factor[name],
            label_BL=targets[name].label_BL,
            mode="recompute",
            sharding=sharding,
        )
        total += more
    return total, values


def _fitting(target: Target, head: Head, *, always: bool) -> Target:
    """The target, its teachers of the head's vocabulary and, where tiles or shards must agree, with as many rows."""
    if not isinstance(target, Dense):
        return target
    heads = {name: alike(head, other, pad=always) for name, other in {"": target.head, **target.references}.items()}
    return Dense(target.label_BL, heads.pop(""), heads)


def blank(tree: Any, weight_BL: Array) -> Any:
    """Zeros in place of what the tokens of weight zero hold: a NaN times zero would still be NaN, here and in dW."""

    def zero(path, x):
        if not dims.per_token(path):
            return x
        counts = (weight_BL != 0).reshape(weight_BL.shape + (1,) * (x.ndim - 2))
        return jnp.where(counts, x, 0)

    return jax.tree_util.tree_map_with_path(zero, tree)
