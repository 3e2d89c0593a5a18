"""Cuts and patches models that lie on eight fake CPU devices, and holds places and numbers against one host's.

test_on_eight_devices runs it in a process of its own, since the number of devices is fixed when JAX starts.
"""

import jax
import numpy as np

from jaxdistill.models.design import Experts
from jaxdistill.models.families import gpt, llama
from jaxdistill.models.surgery.patch import patch
from jaxdistill.models.surgery.truncate import config_of_layers, truncate
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.parallel import rules

KEEP, SUBSETS = (0, 1, 4), ((), (0,), (1,), (2,), (0, 1, 2))
CONFIGS = (
    Config(256, 6, 16, 4, 4, 32, num_kv_heads=2),
    gpt.opt(6, 16, 4, 256),
    llama.llama(256, 6, 16, 4, 2, 32, mlp=Experts(5, 2)),
)


def draw(config, mesh, seed):
    """Parameters on the host, and where they belong on the mesh."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(Transformer(config).init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    return params, jax.device_put(params, rules.shardings(params, mesh))


def hold(there, here, mesh):
    """The same numbers as on the host, each array where the table of shardings has it."""
    for x, y, place in zip(*map(jax.tree.leaves, (there, here, rules.shardings(here, mesh))), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.sharding.is_equivalent_to(place, x.ndim), (x.sharding, place)


def main():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    for config in CONFIGS:
        small = config_of_layers(config, KEEP)
        (teacher, teacher_there), (student, student_there) = draw(config, mesh, 0), draw(small, mesh, 1)
        hold(truncate(config, teacher_there, KEEP)[1], truncate(config, teacher, KEEP)[1], mesh)
        for subset in SUBSETS:
            there = patch(small, student_there, config, teacher_there, KEEP, subset)[1]
            hold(there, patch(small, student, config, teacher, KEEP, subset)[1], mesh)
    print("held", len(jax.devices()))


if __name__ == "__main__":
    main()
