"""The lean form: log-normaliser and logits at a few ids, over tiles of the vocabulary, recomputed for the gradient.

Nothing of the size of a chunk of logits is kept: a tile exists in the forward pass and once more in the backward pass.
Four matmul passes instead of three buy a memory of a few tiles, and cotangents that differ for every token, as a
reduction that is not a plain sum needs them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.head import MASKED, Head
from jaxdistill.losses.linear_heads.sharding import Gradient, Sharding
from jaxdistill.losses.linear_heads.sparse.kernels import Kernels, PallasTpu
from jaxdistill.losses.linear_heads.stream import as_cotangent
from jaxdistill.losses.linear_heads.tiles import Tiles
from jaxdistill.losses.vocabulary import Vocabulary


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def linear_picks(
    kernels: Kernels, sharding: Sharding, temperature: float, head: Head, id_BLS: Array
) -> tuple[Array, Array]:
    """The log-normaliser of z / temperature [B, L], and z at the ids [B, L, S]; differentiable in `head`."""

    def local(sharding, vocabulary, head, inputs):
        if kernels is None:
            return picks(temperature, sharding, vocabulary, head, inputs)
        lse_BL, z_BLS = kernels.picks(head, inputs["id_BLS"], temperature, vocabulary)
        return {"top_BL": lse_BL, "rest_BL": jnp.zeros_like(lse_BL), "z_BLS": z_BLS}

    out = sharding.run(local, head, {"id_BLS": id_BLS})
    return out["top_BL"] + out["rest_BL"], out["z_BLS"]


def picks(temperature: float, sharding: Sharding, vocabulary: Vocabulary, head: Head, inputs) -> dict[str, Array]:
    """One pass over the tiles of this device: z_BLS at inputs["id_BLS"], and lse_BL as top_BL + rest_BL.

    The two parts stay apart, because z - top - rest has not the rounding of a large lse.
    """
    tiles, id_BLS = Tiles.of(head), inputs["id_BLS"]

    def body(carry, tile):
        top_BL, sum_BL, z_BLS = carry
        z_BLV, _ = tiles.logits(tile, vocabulary)
        x_BLV = jnp.where(tiles.fresh(tile), z_BLV, MASKED) / temperature
        new_BL = jnp.maximum(top_BL, jnp.max(x_BLV, axis=-1))
        sum_BL = sum_BL * jnp.exp(top_BL - new_BL) + jnp.sum(jnp.exp(x_BLV - new_BL[..., None]), axis=-1)
        return (
            new_BL,
            sum_BL,
            z_BLS + tiles.slice(tile, vocabulary).pick(z_BLV, tiles.own(tile, id_BLS, vocabulary)),
        ), None

    tokens = head.h_BLD.shape[:2]
    zero = (jnp.full(tokens, MASKED, jnp.float32), jnp.zeros(tokens, jnp.float32), jnp.zeros(id_BLS.shape, jnp.float32))
    (top_BL, sum_BL, z_BLS), _ = jax.lax.scan(body, zero, jnp.arange(tiles.number))
    top_all_BL = top_BL if vocabulary.axis is None else jax.lax.pmax(top_BL, vocabulary.axis)
    rest_BL = jnp.log(vocabulary.add(sum_BL * jnp.exp(top_BL - top_all_BL)))
    return {"top_BL": top_all_BL, "rest_BL": rest_BL, "z_BLS": vocabulary.add(z_BLS)}


def _forward(kernels, sharding, temperature, head, id_BLS):
    lse_BL, z_BLS = linear_picks(kernels, sharding, temperature, head, id_BLS)
    return (lse_BL, z_BLS), (head, id_BLS, lse_BL)


def _backward(kernels, sharding, temperature, kept, cotangents):
    head, id_BLS, lse_BL = kept
    inputs = {"id_BLS": id_BLS, "lse_BL": lse_BL, "dlse_BL": cotangents[0], "dz_BLS": cotangents[1]}
    gradient = sharding.run(functools.partial(_gradient, kernels, temperature), head, inputs)
    return as_cotangent(head, gradient), None


linear_picks.defvjp(_forward, _backward)


def _gradient(kernels, temperature, sharding, vocabulary: Vocabulary, head: Head, inputs) -> Gradient:
    if isinstance(kernels, PallasTpu):
        return sharding.join(kernels.picks_gradient(head, **inputs, T=temperature, vocabulary=vocabulary))
    tiles = Tiles.of(head)
    lse_BL, slope_BL = inputs["lse_BL"], inputs["dlse_BL"] / temperature

    def dz_of(tile, z_BLV):
        p_BLV = jnp.exp(z_BLV / temperature - lse_BL[..., None])
        dz_BLV = jnp.where(tiles.fresh(tile), slope_BL[..., None] * p_BLV, 0)
        id_BLS = tiles.own(tile, inputs["id_BLS"], vocabulary)
        return tiles.slice(tile, vocabulary).scatter(dz_BLV, id_BLS, inputs["dz_BLS"])

    return sharding.join(tiles.gradient(dz_of, vocabulary, exact=sharding.size(sharding.tokens) > 1))
