"""The public function: a weighted sum over the tokens of a Head, by the implementation asked for or the best one."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads import chunked, reference
from jaxdistill.losses.objective import Objective
from jaxdistill.losses.targets import Dense, Target

CHUNK_TOKENS = {"cpu": 256, "tpu": 4096, "gpu": 8192}
"""Tokens whose logits one device holds at a time: few on a CPU, where a chunk of a small vocabulary should stay in the
cache (measured: V = 512, 20 % faster than whole), many where each chunk's update of dW must be worth its traffic."""


def default_positions(sequences: int, length: int) -> int:
    """How many positions of each sequence a chunk takes, for `sequences` sequences on one device."""
    tokens = CHUNK_TOKENS.get(jax.default_backend(), CHUNK_TOKENS["gpu"])
    return max(1, min(length, tokens // sequences))


def weighted_sum(
    objective: Objective,
    head: Head,
    target: Target,
    weight_BL: Array,
    coef: Mapping[str, Any],
    *,
    implementation: str | None = None,
    positions: int | None = None,
) -> tuple[Array, dict[str, Array]]:
    """sum_t weight_t loss_t over all tokens, and the value of each term per token.

    Args:
      objective: what a token costs, as a function of its logits.
      head: hidden states [B, L, D] and the output embedding.
      target: what is known about the next tokens; its per-token arrays are [B, L, ...].
      weight_BL: fp32; a token of weight zero counts nowhere in value and gradient, whatever it holds.
      coef: a number for each term.
      implementation: "chunked" (default) or "reference".
      positions: positions of each sequence in a chunk; None takes `default_positions` for all sequences on one device.

    Returns:
      total: fp32 scalar, differentiable in `head`.
      values: {term: fp32 [B, L]}, zero where the weight is, without gradient.

    Raises:
      InputError: an implementation that does not exist, or a teacher of another vocabulary.
    """
    if implementation not in (None, "chunked", "reference"):
        raise InputError(f"linear_heads has no implementation {implementation!r}; there are 'chunked' and 'reference'")
    if isinstance(target, Dense) and target.head.vocab_size != head.vocab_size:
        raise InputError(
            f"the teacher has a vocabulary of {target.head.vocab_size} and the student of {head.vocab_size}: "
            "their distributions can only be compared under one tokenizer"
        )
    head, target = _blank((head, target), weight_BL)
    if implementation == "reference":
        total, values = reference.weighted_sum(objective, head, target, weight_BL, coef)
    else:
        positions = positions or default_positions(*weight_BL.shape)
        total, values = chunked.weighted_sum(objective, head, target, weight_BL, coef, positions=positions)
    return total, {name: jnp.where(weight_BL != 0, jax.lax.stop_gradient(v), 0) for name, v in values.items()}


def _blank(tree: Any, weight_BL: Array) -> Any:
    """Zeros in place of what the tokens of weight zero hold: a NaN times zero would still be NaN, here and in dW."""

    def blank(path, x):
        if not dims.per_token(path):
            return x
        counts = (weight_BL != 0).reshape(weight_BL.shape + (1,) * (x.ndim - 2))
        return jnp.where(counts, x, 0)

    return jax.tree_util.tree_map_with_path(blank, tree)
