"""How much layers change what passes through them: sums over tokens, to be added over batches, and scores from them."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.models.transformer import Params, Transformer


def stream(
    model: Transformer,
    params: Params,
    tokens_BL: Array,
    segment_BL: Array | None = None,
    position_BL: Array | None = None,
) -> list[Array]:
    """What enters each layer, and what leaves the last before its norm: N + 1 arrays [B, L, D] in the model's dtype.

    Reduced to scores within one jit, as by `cosine_sums`, they need not all be in memory at a time.
    """
    layers = range(model.config.num_layers)
    _, kept = model.hidden(params, tokens_BL, segment_BL, position_BL, keep=layers)
    return [entering(model, params, tokens_BL, position_BL), *(kept[n] for n in layers)]


def entering(model: Transformer, params: Params, tokens_BL: Array, position_BL: Array | None = None) -> Array:
    """What enters the first layer, [B, L, D] in the model's dtype."""
    if position_BL is None:
        position_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1], dtype=jnp.int32), tokens_BL.shape)
    return model._embed(params, tokens_BL, position_BL)


def cosine_sums(states: Sequence[Array], weight_BL: Array, span: int = 1) -> dict[str, Array]:
    """Sums of weight * cos(states[l], states[l + span]) over tokens, fp32 [len(states) - span], and of the weights.

    Args:
      states: [B, L, D] before each layer, and after the last, as `stream` gives them.
      weight_BL: 0 for padding, whose states may be anything.
      span: layers between the two states: 1 for single layers, n for runs of n.
    """
    if not 1 <= span < len(states):
        raise InputError(
            f"a run of {span} layers is asked for, of {len(states) - 1}: ask for at least 1 and at most all"
        )
    totals = [cosine_sum(a, b, weight_BL) for a, b in zip(states, states[span:], strict=False)]
    return {"cosine": jnp.stack(totals), "weight": jnp.sum(weight_BL, dtype=jnp.float32)}


def cosine_sum(before_BLD: Array, after_BLD: Array, weight_BL: Array) -> Array:
    """sum over tokens of weight * cos(before, after), fp32 scalar; a state of norm 0 has the cosine 0 to any."""
    before_BLD, after_BLD = (_of_tokens(x, weight_BL) for x in (before_BLD, after_BLD))
    product_BL = jnp.sum(before_BLD * after_BLD, axis=-1)
    size_BL = jnp.linalg.norm(before_BLD, axis=-1) * jnp.linalg.norm(after_BLD, axis=-1)
    return jnp.sum(weight_BL * product_BL / jnp.where(size_BL > 0, size_BL, 1))


def cosine(sums: Mapping[str, Array]) -> np.ndarray:
    """The mean cosine of the states around every layer, or run of layers, float64; InputError where no token counts."""
    weight = float(sums["weight"])
    if not weight > 0:
        raise InputError("no token counts, so no layer has a score: give batches with weights above 0")
    return np.asarray(sums["cosine"], np.float64) / weight


def influence(sums: Mapping[str, Array]) -> np.ndarray:
    """1 - E[cos] of every layer: block influence (ShortGPT, arXiv 2403.03853, eq. 1); `patterns.highest` reads it.

    With a span of n in the sums these are the scores of runs that `patterns.drop_run` reads.
    """
    return 1 - cosine(sums)


def text_cosine(h_BLD: Array, reference_BLD: Array, weight_BL: Array) -> Array:
    """The cosine of two models' states over all tokens of a sequence at once, fp32 [B]: the measure of LaCo.

    Tokens of weight 0 are left out, the others count alike; a sequence without tokens has the cosine 0.
    """
    h_BLD, reference_BLD = (_of_tokens(x, weight_BL) for x in (h_BLD, reference_BLD))
    product_B, *squares = (
        jnp.sum(a * b, axis=(1, 2)) for a, b in ((h_BLD, reference_BLD), (h_BLD, h_BLD), (reference_BLD, reference_BLD))
    )
    size_B = jnp.sqrt(squares[0]) * jnp.sqrt(squares[1])
    return product_B / jnp.where(size_B > 0, size_B, 1)


def _of_tokens(x_BLD: Array, weight_BL: Array) -> Array:
    """The states in fp32, with zeros for tokens that do not count, whatever they hold."""
    return jnp.where((weight_BL != 0)[..., None], x_BLD, 0).astype(jnp.float32)
