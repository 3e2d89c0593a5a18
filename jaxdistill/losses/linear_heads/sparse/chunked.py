"""Sparse losses on a chunk of logits: what they cost, and their gradient in the logits.

A function of lse and z at a few ids has dz = sum_T dlse_T softmax(z / T) / T + scatter(dz_BLS): the loss itself is
differentiated on [B, L, S] only.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.linear_heads.sparse.kernels import Kernels, PallasTpu
from jaxdistill.losses.vocabulary import Vocabulary


def on_logits(
    function: Callable,
    temperatures: tuple[float, ...],
    z_BLV: Array,
    id_BLS: Array,
    vocabulary: Vocabulary,
    with_gradient: bool,
    also_BLV: Sequence[Array] = (),
    kernels: Kernels = None,
) -> tuple[Array, dict[str, Array], Array | None]:
    """(loss_BL, values, dz_BLV): function(lse_RBL, z_BLS) -> (loss_BL, values), with one lse a temperature.

    `also_BLV` are gradients from elsewhere: added before the scatter, which then needs no copy.
    """
    # the kernels read a chunk once for one temperature, and have nothing to pick where there are no ids
    if isinstance(kernels, PallasTpu) and len(temperatures) == 1 and id_BLS.shape[-1]:
        lse_BL, z_BLS = kernels.statistics(z_BLV, id_BLS, temperatures[0], vocabulary)
        lse_RBL = (lse_BL,)
    else:
        kernels, lse_RBL = None, tuple(vocabulary.lse(z_BLV / T) for T in temperatures)
        z_BLS = vocabulary.pick(z_BLV, id_BLS)
    if not with_gradient:
        return *function(lse_RBL, z_BLS), None
    loss_BL, pull_back, values = jax.vjp(function, lse_RBL, z_BLS, has_aux=True)
    dlse_RBL, dz_BLS = pull_back(jnp.ones_like(loss_BL))
    if kernels is not None:
        dz_BLV = kernels.gradient(z_BLV, id_BLS, lse_RBL[0], dlse_RBL[0], dz_BLS, temperatures[0], vocabulary)
        return loss_BL, values, sum(also_BLV, dz_BLV)
    softmax_BLV = [
        (dlse_BL / T)[..., None] * jnp.exp(z_BLV / T - lse_BL[..., None])
        for T, lse_BL, dlse_BL in zip(temperatures, lse_RBL, dlse_RBL, strict=True)
    ]
    return loss_BL, values, vocabulary.scatter(sum([*softmax_BLV, *also_BLV], jnp.zeros(())), id_BLS, dz_BLS)
