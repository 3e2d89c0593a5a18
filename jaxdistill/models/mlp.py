"""The feed-forward part of a layer: gated or plain. Mixtures of experts are in `moe`."""

from collections.abc import Callable, Mapping

import jax
from flax import nnx
from jax import Array

from jaxdistill.models.adapters import add_adapter
from jaxdistill.models.design import Activation
from jaxdistill.models.weights import add_bias, bias, matrix
from jaxdistill.shard import Shard

ACTIVATIONS: Mapping[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class GatedMLP(nnx.Module):
    """down(activation(gate x) * up x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, F = config.width, config.mlp_width
        self.gate_DF = matrix(rngs, (D, F), fan_in=D)
        self.up_DF = matrix(rngs, (D, F), fan_in=D)
        self.down_FD = matrix(rngs, (F, D), fan_in=F)
        if config.design.mlp.bias:
            self.gate_bias_F, self.up_bias_F, self.down_bias_D = bias(F), bias(F), bias(D)
        self.activation = config.design.mlp.activation

    def __call__(self, x_BLD: Array, shard: Shard) -> tuple[Array, dict[str, Array]]:
        dtype = x_BLD.dtype
        gate_BLF = add_adapter(shard(x_BLD @ self.gate_DF[...].astype(dtype), "BLF"), x_BLD, self, "gate_DF")
        up_BLF = add_adapter(shard(x_BLD @ self.up_DF[...].astype(dtype), "BLF"), x_BLD, self, "up_DF")
        gate_BLF, up_BLF = add_bias(gate_BLF, self, "gate_bias_F"), add_bias(up_BLF, self, "up_bias_F")
        h_BLF = ACTIVATIONS[self.activation](gate_BLF) * up_BLF
        out_BLD = add_adapter(h_BLF @ self.down_FD[...].astype(dtype), h_BLF, self, "down_FD")
        return add_bias(out_BLD, self, "down_bias_D"), {}


class PlainMLP(nnx.Module):
    """down(activation(up x))."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, F = config.width, config.mlp_width
        self.up_DF = matrix(rngs, (D, F), fan_in=D)
        self.down_FD = matrix(rngs, (F, D), fan_in=F)
        if config.design.mlp.bias:
            self.up_bias_F, self.down_bias_D = bias(F), bias(D)
        self.activation = config.design.mlp.activation

    def __call__(self, x_BLD: Array, shard: Shard) -> tuple[Array, dict[str, Array]]:
        dtype = x_BLD.dtype
        up_BLF = add_adapter(shard(x_BLD @ self.up_DF[...].astype(dtype), "BLF"), x_BLD, self, "up_DF")
        h_BLF = ACTIVATIONS[self.activation](add_bias(up_BLF, self, "up_bias_F"))
        out_BLD = add_adapter(h_BLF @ self.down_FD[...].astype(dtype), h_BLF, self, "down_FD")
        return add_bias(out_BLD, self, "down_bias_D"), {}
