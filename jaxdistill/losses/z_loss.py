"""Z-loss: keeps the normaliser of the softmax near one."""

import dataclasses

import jax
from jax import Array

from jaxdistill.losses.targets import Target


@dataclasses.dataclass(frozen=True)
class ZLoss:
    """(log sum exp z)^2 (arXiv 2204.02311, section 5). Its gradient in the logits is 2 log Z softmax(z)."""

    def __call__(self, z_BLV: Array, target: Target) -> Array:
        return jax.nn.logsumexp(z_BLV, axis=-1) ** 2
