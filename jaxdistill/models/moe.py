"""Mixtures of experts without dropped tokens: tokens are sorted by expert, and ragged matmuls do the rest.

This is the dropless formulation of MegaBlocks (arXiv 2211.15841), with `jax.lax.ragged_dot` for its grouped matmuls.

Where devices share out the experts, each of them sees the tokens of its whole group, computes what its own experts say
of them, and gets back the sum for its own tokens. A layer moves its input and output once within the group, whatever
the router chooses: no token is dropped, and no device waits for one that is popular. What an all-to-all would save is
memory: here a device has room for the visits of all of its group's tokens, as if all of them went to its experts.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdistill import dims
from jaxdistill.models.design import Experts
from jaxdistill.models.mlp import ACTIVATIONS
from jaxdistill.models.weights import matrix
from jaxdistill.shard import Shard


def choose(logits_TE: Array, design: Experts) -> tuple[Array, Array]:
    """The experts of every token and their weights, int32 and fp32 [T, active], the most probable first."""
    weight, expert = jax.lax.top_k(jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1), design.active)
    return expert, weight / jnp.sum(weight, axis=-1, keepdims=True) if design.normalise else weight


def load_balance(logits_BLE: Array, weight_BL: Array, active: int) -> Array:
    """E sum_e f_e P_e of one layer, fp32 scalar: `active` where all experts are used alike, more where they are not.

    f_e is the share of tokens that go to expert e, P_e its mean probability (Switch Transformer, arXiv 2101.03961,
    eq. 4-6, with each of a token's `active` experts counted). The gradient goes through P alone.

    Args:
      logits_BLE: of the router, `seen["router", layer]` of `Transformer.look`.
      weight_BL: 0 for tokens that do not count.
      active: experts a token.
    """
    p_BLE = jax.nn.softmax(logits_BLE.astype(jnp.float32), axis=-1)
    E = p_BLE.shape[-1]
    chosen_BLE = jnp.sum(jax.nn.one_hot(jax.lax.top_k(p_BLE, active)[1], E), axis=-2)
    count = jnp.maximum(jnp.sum(weight_BL), 1)
    share_E, mean_E = (jnp.einsum("ble,bl->e", x, weight_BL) / count for x in (chosen_BLE, p_BLE))
    return E * jnp.sum(share_E * mean_E)


class ExpertMLP(nnx.Module):
    """sum over a token's experts of weight * down(activation(gate x) * up x)."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, F, E = config.width, config.mlp_width, config.design.mlp.num
        self.router_DE = matrix(rngs, (D, E), fan_in=D)
        self.gate_EDF = matrix(rngs, (E, D, F), fan_in=D)
        self.up_EDF = matrix(rngs, (E, D, F), fan_in=D)
        self.down_EFD = matrix(rngs, (E, F, D), fan_in=F)
        self.design = config.design.mlp

    def __call__(self, x_BLD: Array, shard: Shard) -> tuple[Array, dict[str, Array]]:
        dtype = x_BLD.dtype
        logits_BLE = shard((x_BLD @ self.router_DE[...].astype(dtype)).astype(jnp.float32), "BLE")
        weights = {name: getattr(self, name)[...].astype(dtype) for name in ("gate_EDF", "up_EDF", "down_EFD")}
        on_device = functools.partial(_on_device, self.design, shard)
        return shard.local(on_device, "BLD", x_BLD=x_BLD, logits_BLE=logits_BLE, **weights), {"router": logits_BLE}


def _on_device(design: Experts, shard: Shard, x_BLD: Array, logits_BLE: Array, **weights: Array) -> Array:
    """The mixture for a device's tokens, from all experts of its group: [B, L, D] in the dtype of `x_BLD`."""
    group = shard.axes("E", "EDF")
    weights = {name: shard.gather(w, dims.letters(name), "D") for name, w in weights.items()}
    x_TD, logits_TE = (x.reshape(-1, x.shape[-1]) for x in (x_BLD, logits_BLE))
    if group:
        x_TD, logits_TE = (jax.lax.all_gather(x, group, tiled=True) for x in (x_TD, logits_TE))
    first = shard.part("E", "EDF") * weights["gate_EDF"].shape[0]
    mixed_TD = shard.sum(mixture(x_TD, *choose(logits_TE, design), first, design, **weights), shard.axes("F", "EDF"))
    if group:
        mixed_TD = jax.lax.psum_scatter(mixed_TD, group, tiled=True)
    return mixed_TD.astype(x_BLD.dtype).reshape(x_BLD.shape)


def mixture(
    x_TD: Array,
    expert: Array,
    weight: Array,
    first: Array | int,
    design: Experts,
    *,
    gate_EDF: Array,
    up_EDF: Array,
    down_EFD: Array,
) -> Array:
    """What these experts, the first of which is number `first`, add to every token, fp32 [T, D].

    `expert` and `weight` are as `choose` gives them: experts that are not here add nothing.
    """
    E = gate_EDF.shape[0]
    own = (expert - first).reshape(-1)
    own = jnp.where((own >= 0) & (own < E), own, E)
    order = jnp.argsort(own, stable=True)  # the visits of tokens to experts, sorted by expert, those elsewhere last
    size_E = jnp.bincount(own, length=E)
    is_here_T1 = jnp.arange(len(own))[:, None] < jnp.sum(size_E)  # ragged_dot says nothing about the rows behind
    visits_TD = jnp.where(is_here_T1, x_TD[order // design.active], 0)
    gate_TF, up_TF = (jax.lax.ragged_dot(visits_TD, w_EDF, size_E) for w_EDF in (gate_EDF, up_EDF))
    out_TD = jax.lax.ragged_dot(ACTIVATIONS[design.activation](gate_TF) * up_TF, down_EFD, size_E)
    by_token = jnp.where(is_here_T1, out_TD, 0)[jnp.argsort(order)].reshape(*expert.shape, -1).astype(jnp.float32)
    return jnp.einsum("tad,ta->td", by_token, weight)
