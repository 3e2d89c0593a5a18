"""Cross-entropy on the token of the data."""

import dataclasses

from jax import Array

from jaxdistill.losses.loss import Sparse
from jaxdistill.losses.targets import Target


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Sparse):
    """-log q(label) with q = softmax(z), in nats. Its gradient in the logits is q - 1[label]."""

    def ids(self, target: Target) -> Array:
        return target.label_BL[..., None]

    def value(self, lse_BL: Array, z_BLS: Array, target: Target) -> Array:
        return lse_BL - z_BLS[..., 0]
