"""`token_values`: what every token costs, differentiable, where the whole is no sum over tokens."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.api import weighted_sum
from jaxdistill.losses.linear_heads.sharding import LOCAL, Sharding
from jaxdistill.losses.objective import Objective, Term


def token_values(
    losses: Mapping[str, Any],
    head: Head,
    target: Any,
    weight_BL: Array,
    *,
    sharding: Sharding = LOCAL,
    **streaming: Any,
) -> dict[str, Array]:
    """{name: fp32 [B, L]}, differentiable in `head`; zero, and without gradient, where `weight_BL` is.

    For what knows the derivative in one token only when it has seen all of them, as the likelihood of a chunk does.
    The backward pass streams the logits again: four matmul passes a head, where `weighted_sum` takes three.

    Args:
      losses: by name, of any kind.
      head, target, weight_BL, sharding: as for `weighted_sum`.
      **streaming: its `mode`, `implementation` and `positions`.
    """
    objective = Objective.of({name: Term(loss) for name, loss in losses.items()})
    return _values((objective, sharding, tuple(streaming.items())), head, target, weight_BL)


def _run(how: tuple, head: Head, target: Any, weight_BL: Array, weights: Mapping[str, Array]):
    objective, sharding, streaming = how
    ones = dict.fromkeys(objective.names, 1.0)
    return weighted_sum(objective, head, target, weight_BL, ones, weights=weights, sharding=sharding, **dict(streaming))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _values(how: tuple, head: Head, target: Any, weight_BL: Array) -> dict[str, Array]:
    return _run(how, head, target, weight_BL, {})[1]


def _forward(how, head, target, weight_BL):
    return _values(how, head, target, weight_BL), (head, target, weight_BL)


def _backward(how, kept, cotangents):
    """The values' cotangents are what their tokens weigh in a sum that has the same gradient."""
    head, target, weight_BL = kept
    weights = {name: jnp.where(weight_BL != 0, d_BL, 0) for name, d_BL in cotangents.items()}
    return jax.grad(lambda head: _run(how, head, target, weight_BL, weights)[0])(head), None, None


_values.defvjp(_forward, _backward)
