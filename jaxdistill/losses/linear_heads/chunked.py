"""The streamed sum: logits exist for one chunk of positions at a time, and gradients are formed with them.

Since the result is one number, sum_t weight_t loss_t, its gradient in each chunk of logits is known as soon as the
chunk is. So the forward scan also multiplies it out into dh and dW: three matmul passes in all, the floor, where
recomputing the logits in a backward pass would take four. The backward pass scales what the forward pass has kept.

Chunks run along the positions, not over flattened tokens: each device then works on its own sequences in every chunk.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill import dims
from jaxdistill.head import Head
from jaxdistill.losses.objective import Objective
from jaxdistill.losses.targets import Target


def weighted_sum(
    objective: Objective,
    head: Head,
    target: Target,
    weight_BL: Array,
    coef: Mapping[str, Any],
    *,
    positions: int,
) -> tuple[Array, dict[str, Array]]:
    """As `reference.weighted_sum`, with fp32 logits for `positions` positions of every sequence at a time.

    Differentiable in the total with respect to `head`. Tokens of weight zero hold finite numbers: `api` sees to it.
    """
    length = weight_BL.shape[1]
    num_chunks = -(-length // positions)
    size = -(-length // num_chunks)
    padded = _pad({"head": head, "target": target, "weight_BL": weight_BL}, num_chunks * size - length)
    total, values = _streamed(objective, num_chunks, *padded.values(), dict(coef))
    return total, {name: value_BL[:, :length] for name, value_BL in values.items()}


def _pad(tree: Any, extra: int) -> Any:
    """Every per-token array with `extra` more positions of zeros; their weights are then zero too."""

    def pad(path, x):
        return jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2)) if dims.per_token(path) else x

    return jax.tree_util.tree_map_with_path(pad, tree)


def _take(tree: Any, chunk: Array, size: int) -> Any:
    """The positions of one chunk from every per-token array; arrays that all tokens share stay whole."""

    def take(path, x):
        return jax.lax.dynamic_slice_in_dim(x, chunk * size, size, 1) if dims.per_token(path) else x

    return jax.tree_util.tree_map_with_path(take, tree)


def _scan(objective, num_chunks, head, target, weight_BL, coef, with_gradient):
    """One pass over the chunks: total, terms per token and, where asked, the gradient of the total as a Head."""
    size = weight_BL.shape[1] // num_chunks
    w_VD = head.w_VD.astype(head.h_BLD.dtype)  # once, not in every chunk

    def body(carry, chunk):
        total, dw_VD, dbias_V = carry
        here = _take({"head": head, "target": target, "weight_BL": weight_BL}, chunk, size)
        h_BLD, weight_here_BL = here["head"].h_BLD, here["weight_BL"]

        def loss(product_BLV, bias_V):
            return objective(head.finish(product_BLV, bias_V), here["target"], coef)

        product_BLV = jnp.einsum("bld,vd->blv", h_BLD, w_VD, preferred_element_type=jnp.float32)
        if not with_gradient:
            loss_BL, values = loss(product_BLV, head.bias_V)
            return (total + jnp.sum(weight_here_BL * loss_BL), dw_VD, dbias_V), (values, None)
        loss_BL, pull_back, values = jax.vjp(loss, product_BLV, head.bias_V, has_aux=True)
        dproduct_BLV, dbias_here_V = pull_back(weight_here_BL)
        dproduct_BLV = dproduct_BLV.astype(h_BLD.dtype)
        dh_BLD = jnp.einsum("blv,vd->bld", dproduct_BLV, w_VD)
        dw_VD += jnp.einsum("blv,bld->vd", dproduct_BLV, h_BLD, preferred_element_type=jnp.float32)
        dbias_V = None if dbias_V is None else dbias_V + dbias_here_V
        return (total + jnp.sum(weight_here_BL * loss_BL), dw_VD, dbias_V), (values, dh_BLD)

    zeros = [
        None if x is None or not with_gradient else jnp.zeros(x.shape, jnp.float32) for x in (head.w_VD, head.bias_V)
    ]
    (total, dw_VD, dbias_V), (values, dh) = jax.lax.scan(body, (jnp.float32(0), *zeros), jnp.arange(num_chunks))
    gradient = (_join(dh), dw_VD, dbias_V) if with_gradient else None
    return total, {name: _join(value) for name, value in values.items()}, gradient


def _join(chunks: Array) -> Array:
    """[num_chunks, B, size, ...] -> [B, num_chunks * size, ...]"""
    return jnp.moveaxis(chunks, 0, 1).reshape(chunks.shape[1], -1, *chunks.shape[3:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _streamed(objective, num_chunks, head, target, weight_BL, coef):
    return _scan(objective, num_chunks, head, target, weight_BL, coef, with_gradient=False)[:2]


def _forward(objective, num_chunks, head, target, weight_BL, coef):
    total, values, gradient = _scan(objective, num_chunks, head, target, weight_BL, coef, with_gradient=True)
    return (total, values), (head, gradient)


def _backward(objective, num_chunks, kept, cotangents):
    head, gradient = kept
    leaves, structure = jax.tree.flatten(head)
    scaled = [(cotangents[0] * g).astype(x.dtype) for g, x in zip(jax.tree.leaves(gradient), leaves, strict=True)]
    return jax.tree.unflatten(structure, scaled), None, None, None


_streamed.defvjp(_forward, _backward)
