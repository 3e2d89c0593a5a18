"""Prints how far a gradient by the kernels on two meshes of four devices is from that of one, relatively."""

import jax
import jax.numpy as jnp
import numpy as np
from test_splash import CONFIG, SEGMENTS, L

from jaxdistill.models.transformer import Transformer
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh


def gradient(mesh):
    model = Transformer(CONFIG, shard=rules.constrain(mesh), implementation="splash", remat=True)
    tokens = jnp.asarray(np.random.default_rng(2).integers(64, size=(2, L)), jnp.int32)

    def loss(params):
        h_BLD, _ = model.hidden(params, tokens, SEGMENTS)
        return jnp.sum(jnp.where(SEGMENTS[..., None] > 0, h_BLD**2, 0) * jnp.arange(h_BLD.shape[-1]))

    return jax.tree.leaves(jax.jit(jax.grad(loss))(model.init(jax.random.key(0))))


one = gradient(Mesh().build(jax.devices()[:1]))
for mesh in (Mesh(fsdp=2, tensor=2), Mesh(context=2, tensor=2)):
    pairs = zip(map(np.array, one), map(np.array, gradient(mesh.build(jax.devices()))), strict=True)
    print(max(float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in pairs))
