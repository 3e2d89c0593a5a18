"""Runs the teacher's ops on eight fake CPU devices, laid out in several ways, and writes what they return.

test_teacher_on_devices runs it in a process of its own, since the number of devices is fixed when JAX starts.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.losses.linear_heads.pps.api import linear_pps
from jaxdistill.losses.linear_heads.sample.api import linear_sample
from jaxdistill.losses.linear_heads.shapes import Shape
from jaxdistill.losses.linear_heads.sharding import Sharding
from jaxdistill.losses.linear_heads.top_k.api import linear_top_k

SHAPE = Shape("none: two of eight shards hold padding alone", 16, 2176, 1500, bias=True)
BATCH, LENGTH, K, ROUNDS = 8, 5, 300, 40  # a shard has 272 rows, fewer than K

LAYOUTS = {
    "tokens": Sharding(sequences=("data", "tensor", "fsdp")),
    "vocabulary": Sharding(vocabulary=("tensor",)),
    "both": Sharding(sequences=("data",), vocabulary=("tensor",)),
    "and width": Sharding(sequences=("data", "fsdp"), vocabulary=("tensor",), width=("fsdp",)),
}
MESHES = {"tokens": (2, 2, 2), "vocabulary": (1, 8, 1), "both": (2, 4, 1), "and width": (2, 2, 2)}


def head():
    """A head of SHAPE in numbers of so few bits that its logits are exact, in whatever pieces they are summed."""
    found = SHAPE.random(0, BATCH, LENGTH)
    return dataclasses.replace(found, h_BLD=jnp.round(8 * found.h_BLD) / 8, w_VD=jnp.round(64 * found.w_VD) / 64)


def results(sharding: Sharding) -> dict[str, np.ndarray]:
    """What the ops give for SHAPE, by name."""
    index_BL = np.arange(BATCH * LENGTH, dtype=np.int32).reshape(BATCH, LENGTH)
    options = {"positions": 2, "sharding": sharding}

    @jax.jit
    def run(head, key):
        top = linear_top_k(head, K, **options)
        draws = [
            linear_sample(head, ROUNDS, key, index_BL=index_BL, sampler=sampler, exponent=0.8, **options)
            for sampler in ("multinomial", "systematic")
        ]
        pps = linear_pps(head, ROUNDS, key, index_BL=index_BL, **options)
        return {"top": top, "pps": pps, "multinomial": draws[0], "systematic": draws[1]}

    found = run(head(), jax.random.key(1))
    return {f"{op} {name}": np.asarray(x) for op, fields in found.items() for name, x in fields._asdict().items()}


if __name__ == "__main__":
    devices = np.array(jax.devices())
    for name, sharding in LAYOUTS.items():
        mesh = jax.sharding.Mesh(devices.reshape(MESHES[name]), ("data", "tensor", "fsdp"))
        placed = dataclasses.replace(sharding, mesh=mesh)
        np.savez(f"{sys.argv[1]}/{name}.npz", **results(placed))
