"""Runs every op on meshes of eight fake CPU devices and on one, and prints how far they are apart.

test_sharded runs it in a process of its own, since the number of devices is fixed when JAX starts.
"""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdistill.head import Head
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.linear_heads import Sharding, linear_picks, linear_sparse, weighted_sum
from jaxdistill.losses.linear_heads.blocks import Tile, TpuBlocks
from jaxdistill.losses.linear_heads.sparse.kernels import PallasTpu
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.targets import NO_ID, Dense
from jaxdistill.losses.z_loss import ZLoss

B, L, D, V, S = 8, 6, 16, 1024, 12
OBJECTIVE = Objective.of({"ce": Term(CrossEntropy()), "kl": Term(ForwardKL(2.0)), "z": Term(ZLoss())})
KNOBS = {"ce": 0.7, "kl": 1.3, "z": 0.01}
RNG = np.random.default_rng(0)


def random_head(rows: int, width: int) -> Head:
    h_BLD, w_VD = RNG.normal(size=(B, L, width)), RNG.normal(size=(rows, width)) / 2
    bias_V = jnp.asarray(RNG.normal(size=rows), jnp.float32)
    return Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), bias_V, softcap=9.0, vocab_size=V - 5)


HEAD, TEACHER = random_head(V, D), random_head(V - 2, 2 * D)
LABEL_BL = jnp.asarray(RNG.integers(V - 5, size=(B, L)), jnp.int32)
WEIGHT_BL = jnp.asarray(RNG.choice([0.0, 0.5, 2.0], size=(B, L)), jnp.float32)
ID_BLS = jnp.asarray(RNG.integers(V - 5, size=(B, L, S)), jnp.int32).at[:, :, -2:].set(NO_ID)


def objective(head: Head, sharding: Sharding, mode: str):
    def total(head):
        target = Dense(LABEL_BL, TEACHER)
        return weighted_sum(OBJECTIVE, head, target, WEIGHT_BL, KNOBS, mode=mode, positions=2, sharding=sharding)

    (value, values), gradient = jax.value_and_grad(total, has_aux=True)(head)
    return value, values, gradient


def picks(head: Head, sharding: Sharding):
    def total(head):
        lse_BL, z_BLS = linear_picks(head, ID_BLS, temperature=2.0, sharding=sharding)
        return jnp.sum(lse_BL**2) + jnp.sum(z_BLS**3), (lse_BL, z_BLS)

    return jax.value_and_grad(total, has_aux=True)(head)


BLOCKS = TpuBlocks(Tile(128, 128), Tile(128, 128), Tile(128, 128), chunk=128, cores=1, vmem_bytes=2**26)


def kernels(head: Head, sharding: Sharding, mode: str):
    def total(head):
        how = {"mode": mode, "implementation": PallasTpu(BLOCKS, interpret=True), "sharding": sharding}
        return linear_sparse(
            lambda lse_BL, z_BLS, _: (lse_BL**2 + jnp.sum(z_BLS**3, axis=-1), {}), head, ID_BLS, {}, **how
        )

    return jax.value_and_grad(total, has_aux=True)(head)


def apart(one, other) -> float:
    """The largest difference relative to the size of the array, over all arrays."""
    sizes = jax.tree.map(lambda x, y: float(np.abs(np.subtract(x, y)).max() / np.abs(x).max()), one, other)
    return max(jax.tree.leaves(sizes))


def main():
    found = {}
    functions = {
        "forward": lambda head, sharding: objective(head, sharding, "forward"),
        "recompute": lambda head, sharding: objective(head, sharding, "recompute"),
        "picks": picks,
        "kernels forward": lambda head, sharding: kernels(head, sharding, "forward"),
        "kernels recompute": lambda head, sharding: kernels(head, sharding, "recompute"),
    }
    for name, function in functions.items():
        alone = jax.jit(lambda head, function=function: function(head, Sharding()))(HEAD)
        for shape in ((8, 1, 1), (1, 1, 8), (1, 2, 4), (2, 2, 2)):
            mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
            sharding = Sharding(mesh, sequences=("data", "fsdp"), vocabulary=("tensor",), width=("fsdp",))
            places = {"h_BLD": (("data", "fsdp"),), "w_VD": ("tensor", "fsdp"), "bias_V": ("tensor",)}
            arrays = {
                key: jax.device_put(getattr(HEAD, key), NamedSharding(mesh, PartitionSpec(*axes)))
                for key, axes in places.items()
            }
            head = Head(**arrays, softcap=9.0, vocab_size=V - 5)
            compiled = jax.jit(lambda head, f=function, s=sharding: f(head, s)).lower(head).compile()
            gathered = [
                math.prod(map(int, dims.split(",")))
                for dims in re.findall(r"= \w+\[([\d,]+)\][^=]* all-gather\(", compiled.as_text())
            ]
            found[f"{name} {shape}"] = {"apart": apart(alone, compiled(head)), "gathered": max(gathered, default=0)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
