"""What tokens tell on eight fake CPU devices, laid out in several ways; test_scores runs it as a process."""

import sys

import jax
import numpy as np

from jaxdistill.evals import per_token
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads import Sharding

B, L, V, D = 8, 5, 150, 16
ROWS, TEACHER_ROWS = 192, 152  # both divide by eight, and two shards of the student's hold padding alone
WIDE = ("data", "fsdp")
LAYOUTS = {
    "tokens": ((4, 2, 1), {"sequences": WIDE, "width": ("fsdp",)}),
    "vocabulary": ((1, 1, 8), {"vocabulary": ("tensor",)}),
    "all": ((2, 2, 2), {"sequences": WIDE, "vocabulary": ("tensor",), "width": ("fsdp",)}),
}


def head(seed: int, rows: int) -> Head:
    draw = np.random.default_rng(seed)
    arrays = draw.normal(size=(B, L, D)), draw.normal(size=(rows, D)) / np.sqrt(D)
    return Head(*(jax.numpy.asarray(x, "float32") for x in arrays), vocab_size=V)


def results(sharding: Sharding) -> dict[str, np.ndarray]:
    """{name: [B, L]} of one student and teacher."""
    label_BL = np.random.default_rng(2).integers(V, size=(B, L)).astype(np.int32)

    @jax.jit
    def find(student, teacher):
        return per_token(student, label_BL, teacher, positions=2, sharding=sharding)

    return {name: np.asarray(x) for name, x in find(head(0, ROWS), head(1, TEACHER_ROWS)).items()}


if __name__ == "__main__":
    for name, (shape, places) in LAYOUTS.items():
        mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), ("data", "fsdp", "tensor"))
        np.savez(f"{sys.argv[1]}/{name}.npz", **results(Sharding(mesh, **places)))
