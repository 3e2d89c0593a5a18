"""The public function: a weighted sum over the tokens of a Head, by the implementation asked for or the best one."""

from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads import chunked, reference
from jaxdistill.losses.objective import Objective
from jaxdistill.losses.targets import Target

CHUNK_ELEMENTS = {"cpu": 2**19, "gpu": 2**29, "tpu": 2**27}
"""fp32 logits held at a time, by platform: on a CPU they should stay in the cache, on a GPU large matmuls pay."""


def default_positions(batch: int, length: int, vocabulary: int, platform: str | None = None) -> int:
    """How many positions of each sequence one chunk takes, for a bound on the logits that exist at a time."""
    elements = CHUNK_ELEMENTS.get(platform or jax.default_backend(), CHUNK_ELEMENTS["gpu"])
    return max(1, min(length, elements // (batch * vocabulary)))


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
      positions: positions of each sequence in a chunk; None bounds the memory by `CHUNK_ELEMENTS`.

    Returns:
      total: fp32 scalar, differentiable in `head`.
      values: {term: fp32 [B, L]}, zero where the weight is, without gradient.

    Raises:
      InputError: an implementation that does not exist.
    """
    if implementation == "reference":
        return reference.weighted_sum(objective, head, target, weight_BL, coef)
    if implementation not in (None, "chunked"):
        raise InputError(f"linear_heads has no implementation {implementation!r}; there are 'chunked' and 'reference'")
    batch, length = weight_BL.shape
    positions = positions or default_positions(batch, length, head.w_VD.shape[0])
    return chunked.weighted_sum(objective, head, target, weight_BL, coef, positions=positions)
