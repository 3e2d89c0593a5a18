"""Cuts and patches models that lie on eight fake CPU devices, and holds places and numbers against one host's.

test_on_eight_devices runs it in a process of its own, since the number of devices is fixed when JAX starts.
"""

import jax
import numpy as np

from jaxdistill.models.design import Experts
from jaxdistill.models.families import gpt, llama
from jaxdistill.models.surgery import merge, width
from jaxdistill.models.surgery.patch import patch
from jaxdistill.models.surgery.truncate import config_of_layers, truncate
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh

GROUPS, ULPS = [(0, 1), (2, 3, 4)], 8  # a few operations on numbers of one size
KEEP, SUBSETS = (0, 1, 4), ((), (0,), (1,), (2,), (0, 1, 2))
CONFIGS = (
    Config(256, 6, 16, 8, 4, 32, num_kv_heads=4),
    gpt.opt(6, 16, 4, 256),
    llama.llama(256, 6, 16, 8, 4, 32, mlp=Experts(5, 2)),
)


def draw(config, mesh, seed):
    """Parameters on the host, and where they belong on the mesh."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(Transformer(config).init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    return params, jax.device_put(params, rules.shardings(params, mesh))


def choose(config):
    """Half of everything, and other halves in other layers."""
    rng = np.random.default_rng(2)
    groups, channels = (width.choose(rng.random((6, n)), n // 2) for n in (config.num_kv_heads, config.mlp_width))
    return {"J": groups, "F": channels, "D": np.arange(0, config.width, 2)}


def hold(there, here, mesh, ulps=0, placed=True):
    """The same numbers as on the host, on eight devices, and each array where the table of shardings has it."""
    for x, y, place in zip(*map(jax.tree.leaves, (there, here, rules.shardings(here, mesh))), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=ulps * 2.0**-24 * np.abs(y).max())
        assert len(x.sharding.device_set) == 8
        assert not placed or x.sharding.is_equivalent_to(place, x.ndim), (x.sharding, place)


def main():
    mesh = Mesh(2, 2, 2).build()
    for config in CONFIGS:
        small = config_of_layers(config, KEEP)
        (teacher, teacher_there), (student, student_there) = draw(config, mesh, 0), draw(small, mesh, 1)
        hold(truncate(config, teacher_there, KEEP)[1], truncate(config, teacher, KEEP)[1], mesh)
        for subset in SUBSETS:
            there = patch(small, student_there, config, teacher_there, KEEP, subset)[1]
            hold(there, patch(small, student, config, teacher, KEEP, subset)[1], mesh)
        hold(merge.average(config, teacher_there, GROUPS)[1], merge.average(config, teacher, GROUPS)[1], mesh, ULPS)
        hold(merge.merge_run(config, teacher_there, 1, 3)[1], merge.merge_run(config, teacher, 1, 3)[1], mesh, ULPS)
        choice = choose(config)
        hold(
            width.prune(config, teacher_there, choice)[1],
            width.prune(config, teacher, choice)[1],
            mesh,
            ULPS,
            placed=False,
        )
    print("held", len(jax.devices()))


if __name__ == "__main__":
    main()
