"""Compile the TPU kernels for a chip that is not here, and print what the compiler says as JSON.

    python compile_for_tpu.py v5e 4096 128256

A process of its own: libtpu reads its settings from the environment, once.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.losses.linear_heads.blocks import for_device
from jaxdistill.losses.linear_heads.sparse.pallas_tpu_backward import backward
from jaxdistill.losses.linear_heads.sparse.pallas_tpu_elementwise import gradient, statistics
from jaxdistill.losses.linear_heads.sparse.pallas_tpu_forward import forward
from jaxdistill.parallel import aot

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
S = 50


def elementwise(blocks):
    """A chunk of a streamed loss: XLA's matmuls around the two kernels."""

    def chunk(h_TD, w_VD, id_TS, dlse_T, dz_TS):
        z_TV = jnp.einsum("td,vd->tv", h_TD, w_VD, preferred_element_type=jnp.float32)
        lse_T, z_TS = statistics(z_TV, id_TS, blocks=blocks)
        dz_TV = gradient(z_TV, id_TS, lse_T, dlse_T, dz_TS * z_TS, dtype=h_TD.dtype, blocks=blocks)
        dw_VD = jnp.einsum("tv,td->vd", dz_TV, h_TD, preferred_element_type=jnp.float32)
        return lse_T, jnp.einsum("tv,vd->td", dz_TV, w_VD), dw_VD

    return chunk


def lean(blocks, *, bias, **keywords):
    """Value and gradient of the lean pair."""

    def pair(h_TD, w_VD, id_TS, dlse_T, dz_TS, vocab_size):
        bias_V = jnp.zeros(w_VD.shape[0]) if bias else None
        arguments = dict(vocab_size=vocab_size, blocks=blocks, **keywords)
        lse_T, z_TS = forward(h_TD, w_VD, bias_V, id_TS, **arguments)
        return lse_T, backward(h_TD, w_VD, bias_V, id_TS, lse_T, dlse_T, dz_TS * z_TS, **arguments)

    return pair


def report(function, T, D, V, sharding, *scalars):
    shapes = [(T, D), (V, D), (T, S), (T,), (T, S), *scalars]
    dtypes = [jnp.bfloat16, jnp.bfloat16, jnp.int32, jnp.float32, jnp.float32] + [jnp.int32] * len(scalars)
    arguments = [jax.ShapeDtypeStruct(s, d, sharding=sharding) for s, d in zip(shapes, dtypes, strict=True)]
    compiled = jax.jit(function).trace(*arguments).lower().compile()
    text = compiled.as_text()
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    return {
        "kernels": sorted({line.split("%jaxdistill_")[1].split(".")[0].split(" ")[0] for line in calls}),
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "moves_logits": any(
            f"f32[{V},{T}]" in line or f"f32[{T},{V}]" in line
            for line in text.splitlines()
            if " copy(" in line or " transpose(" in line
        ),
    }


def main(chip, D, V, T=2048):
    device = aot.topology(TOPOLOGIES[chip]).devices()[0]
    sharding = NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec())
    blocks = for_device(device.device_kind)
    plain = lean(blocks, bias=False)
    finished = lean(blocks, bias=True, scale=0.5, softcap=30.0, temperature=2.0)
    return {
        "elementwise": report(elementwise(blocks), T, D, V, sharding),
        "ragged": report(elementwise(blocks), T - 48, D, V - 7, sharding),
        "lean": report(plain, T, D, V, sharding, ()),
        "lean, more tokens": report(plain, 2 * T, D, V, sharding, ()),
        "lean, ragged and finished": report(finished, T - 48, D, V - 7, sharding, ()),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:]))))
