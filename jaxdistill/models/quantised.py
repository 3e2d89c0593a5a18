"""Int8 layers for a frozen model: every matrix is int8 beside one fp32 scale for each of its output channels.

    params["layers"]["mlp"]["gate_DF"]         int8     [N, D, F]
    params["layers"]["mlp"]["gate_scale_F"]    float32  [N, F]

w = scale * int8, with scale = max |w| / 127.5 over what the matmul sums; the largest are clipped by half a step. Both
arrays have letters, so a table places them as any other. `transformer` widens one layer at a time, inside the scan.
Embeddings and the output layer, norms, biases and routers stay as they are: a head reads its matrix whole, so nothing
would be gained while it runs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill import dims
from jaxdistill.errors import InputError

CHANNELS: Mapping[str, str] = {
    "DHK": "HK", "DJK": "JK", "HKD": "D", "DF": "F", "FD": "D", "EDF": "EF", "EFD": "ED",
}  # fmt: skip
"""The output channels of every kind of matrix; the other letters are summed over."""


def quantise(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a model with its layers in int8 (qwix, symmetric, absolute maximum); to be traced.

    Raises InputError where the extra `quant` is not installed.
    """
    return {**params, dims.STACKED: _narrow(params[dims.STACKED])}


def _narrow(layers: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, x in layers.items():
        if isinstance(x, Mapping):
            made[name] = _narrow(x)
        elif (own := dims.letters(name)) in CHANNELS:
            made |= dict(zip((name, scale_name(name)), _quantise(x, "N" + own, "N" + CHANNELS[own]), strict=True))
        else:
            made[name] = x
    return made


def _quantise(x: jax.Array, own: str, channels: str) -> tuple[jax.Array, jax.Array]:
    try:
        import qwix
    except ImportError as error:
        raise InputError("int8 weights need a package: pip install 'jaxdistill[quant]'") from error
    axes = [own.index(letter) for letter in channels]
    array = qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=axes)
    return array.qvalue, array.scale.reshape([x.shape[axis] for axis in axes])


def scale_name(name: str) -> str:
    """The name of a matrix's scales: "gate_scale_F" for "gate_DF"."""
    stem, _, own = name.rpartition("_")
    return f"{stem}_scale_{CHANNELS[own]}"


def widen(layer: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The parameters of one layer with its int8 matrices in `dtype` and without their scales; others as they are."""
    return dict(_widened(layer, dtype))


def _widened(layer: Mapping[str, Any], dtype: Any) -> Iterator[tuple[str, Any]]:
    matrices = {name for name, x in layer.items() if not isinstance(x, Mapping) and x.dtype == jnp.int8}
    scales = {scale_name(name) for name in matrices}
    for name, x in layer.items():
        if isinstance(x, Mapping):
            yield name, widen(x, dtype)
        elif name in matrices:
            own, scale = dims.letters(name), layer[scale_name(name)]
            shape = [size if letter in CHANNELS[own] else 1 for letter, size in zip(own, x.shape, strict=True)]
            yield name, (x.astype(jnp.float32) * scale.reshape(shape)).astype(dtype)
        elif name not in scales:
            yield name, x
