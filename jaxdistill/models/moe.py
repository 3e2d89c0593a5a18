"""Mixtures of experts without dropped tokens: tokens are sorted by expert, and ragged matmuls do the rest.

This is the dropless formulation of MegaBlocks (arXiv 2211.15841), with `jax.lax.ragged_dot` for its grouped matmuls.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdistill.models.design import Experts
from jaxdistill.models.mlp import ACTIVATIONS
from jaxdistill.models.weights import matrix


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

    def __call__(self, x_BLD: Array, shard) -> tuple[Array, dict[str, Array]]:
        (B, L, D), dtype = x_BLD.shape, x_BLD.dtype
        logits_BLE = (x_BLD @ self.router_DE[...].astype(dtype)).astype(jnp.float32)
        expert, weight = choose(logits_BLE.reshape(B * L, -1), self.design)
        order = jnp.argsort(expert.reshape(-1), stable=True)  # the visits of tokens to experts, sorted by expert
        visits_TD = x_BLD.reshape(-1, D)[order // self.design.active]
        out_TD = self._experts(visits_TD, jnp.bincount(expert.reshape(-1), length=self.design.num))
        by_token = out_TD[jnp.argsort(order)].reshape(B * L, self.design.active, D)
        mixed_TD = jnp.einsum("tad,ta->td", by_token.astype(jnp.float32), weight)
        return shard(mixed_TD.astype(dtype).reshape(B, L, D), "BLD"), {"router": logits_BLE}

    def _experts(self, x_TD: Array, size_E: Array) -> Array:
        """Every expert on its own rows: `size_E` of them each, one expert after the other."""
        gate_EDF, up_EDF, down_EFD = (w[...].astype(x_TD.dtype) for w in (self.gate_EDF, self.up_EDF, self.down_EFD))
        gate_TF = jax.lax.ragged_dot(x_TD, gate_EDF, size_E)
        up_TF = jax.lax.ragged_dot(x_TD, up_EDF, size_E)
        return jax.lax.ragged_dot(ACTIVATIONS[self.design.activation](gate_TF) * up_TF, down_EFD, size_E)
