"""Prints the largest relative difference of a gradient by the kernels between one device and a mesh of 2 x 2."""

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


one, four = gradient(Mesh().build(jax.devices()[:1])), gradient(Mesh(fsdp=2, tensor=2).build(jax.devices()))
pairs = zip(map(np.array, one), map(np.array, four), strict=True)
print(max(float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in pairs))
