"""Runs decoders on meshes of eight fake CPU devices and on one, and prints how far values and gradients are apart.

test_split_models runs it in a process of its own, since the number of devices is fixed when JAX starts.
"""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.models.design import Design, Experts
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.models.variant import Variant
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh

B, L = 8, 32
DENSE = Config(vocab_size=48, num_layers=2, width=16, num_heads=4, head_size=8, mlp_width=24, num_kv_heads=2,
               vocab_multiple=8)  # fmt: skip
MODELS = {
    "dense": DENSE,
    "experts": Variant(**dataclasses.asdict(DENSE), design=Design(mlp=Experts(num=4, active=2))),
}
CASES = {
    "context": ("dense", Mesh(context=4), "axes"),
    "context and tensor": ("dense", Mesh(fsdp=2, context=2, tensor=2), "axes"),
    "context of copies": ("dense", Mesh(data=2, fsdp=2, context=2), "data"),
    "expert": ("experts", Mesh(expert=4), "axes"),
    "every axis": ("experts", Mesh(fsdp=1, context=2, expert=2, tensor=2), "axes"),
    "experts gathered": ("experts", Mesh(fsdp=4, expert=2), "fsdp"),
    "experts split by width": ("experts", Mesh(data=4, fsdp=2), "tensor"),
}


def tokens():
    """Packed rows: documents of several lengths, which attention must not mix."""
    draw = np.random.default_rng(0)
    tokens_BL = draw.integers(48, size=(B, L)).astype(np.int32)
    segment_BL = np.sort(draw.integers(3, size=(B, L)), axis=1).astype(np.int32)
    position_BL = np.arange(L) - np.argmax(segment_BL[:, :, None] == segment_BL[:, None, :], axis=2)
    return {"tokens_BL": tokens_BL, "segment_BL": segment_BL, "position_BL": position_BL.astype(np.int32)}


def random_params(config):
    """Parameters that no program has to be compiled for."""
    draw, shapes = np.random.default_rng(2), jax.eval_shape(Transformer(config).init, jax.random.key(0))
    return jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32) / np.sqrt(x.shape[-1]), shapes)


def compiled(config, params, batch, mesh, table):
    """The function that gives hidden states and the gradient of a sum over them, compiled for where the inputs lie."""
    model = Transformer(config, shard=rules.constrain(mesh, table))
    weight_BLD = np.random.default_rng(1).normal(size=(B, L, config.width)).astype(np.float32)

    def total(params, batch):
        h_BLD, _ = model.hidden(params, **batch)
        return jnp.sum(weight_BLD * h_BLD), h_BLD

    both = jax.jit(jax.grad(total, has_aux=True))
    return both.lower(params, batch).compile()


def apart(one, other) -> float:
    """The largest difference relative to the size of the array, over all arrays."""
    sizes = jax.tree.map(lambda x, y: float(np.abs(np.subtract(x, y)).max() / np.abs(x).max()), one, other)
    return max(jax.tree.leaves(sizes))


def gathered(program) -> list[list[int]]:
    """The shapes of all that the program gathers."""
    found = re.findall(r"= \w+\[([\d,]+)\][^=]* all-gather\(", program.as_text())
    return sorted({tuple(map(int, shape.split(","))) for shape in found})


def temporary(config, mesh) -> int:
    """Bytes that a device needs beside parameters and results, for inputs 32 times as long; nothing is run."""
    model = Transformer(config, shard=rules.constrain(mesh))
    longer = {name: np.repeat(x, 32, axis=1) for name, x in tokens().items()}

    def total(params, batch):
        return jnp.sum(model.hidden(params, **batch)[0] ** 2)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    placed = [
        jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)
        for tree, places in ((shapes, rules.shardings(shapes, mesh)), (longer, rules.of_batch(longer, mesh)))
    ]
    return jax.jit(jax.grad(total)).lower(*placed).compile().memory_analysis().temp_size_in_bytes


def main(*names: str):
    batch, alone = tokens(), {}
    found = {"temporary": [temporary(DENSE, Mesh(fsdp=2, context=n).build(jax.devices()[: 2 * n])) for n in (1, 4)]}
    for case in names:
        name, axes, table = CASES[case]
        params = random_params(MODELS[name])
        if name not in alone:
            program = compiled(MODELS[name], params, batch, Mesh(fsdp=1).build(jax.devices()[:1]), rules.DEFAULT)
            alone[name] = jax.device_get(program(params, batch))
        mesh, table = axes.build(), rules.named(table)
        here = jax.device_put(params, rules.shardings(params, mesh, table))
        placed = jax.device_put(batch, rules.of_batch(batch, mesh, table))
        program = compiled(MODELS[name], here, placed, mesh, table)
        there = jax.device_get(program(here, placed))
        found[case] = {"apart": apart(alone[name], there), "gathered": gathered(program)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
