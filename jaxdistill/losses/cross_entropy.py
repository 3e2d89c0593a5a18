"""Cross-entropy on the token of the data."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.targets import Target


def label_logit(z_BLV: Array, label_BL: Array) -> Array:
    """z[label], fp32 [B, L], as a masked sum: local where the vocabulary is sharded, as a gather would not be."""
    vocabulary_BLV = jax.lax.broadcasted_iota(jnp.int32, z_BLV.shape, z_BLV.ndim - 1)
    return jnp.sum(jnp.where(vocabulary_BLV == label_BL[..., None], z_BLV, 0), axis=-1)


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """-log p(label) with p = softmax(z), in nats. Its gradient in the logits is p - 1[label]."""

    def __call__(self, z_BLV: Array, target: Target) -> Array:
        return jax.nn.logsumexp(z_BLV, axis=-1) - label_logit(z_BLV, target.label_BL)
