"""Cross-entropy against tokens sampled from a teacher: random sampling knowledge distillation."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.loss import Sparse
from jaxdistill.losses.targets import Sampled


@dataclasses.dataclass(frozen=True)
class SampledCrossEntropy(Sparse):
    """-sum_S w log q = (sum_S w) lse - sum_S w z, with E[w] = p (RS-KD, arXiv 2503.16870).

    Its gradient, (sum w) q - w, is that of the full forward KL in expectation. The value is the cross-entropy form on
    purpose: the KL from a sample, -sum w log q + sum w log w, exceeds the true one by H(p) - E[H(w)], which shrinks
    with the number of draws, so that it would make few draws look bad. One draw a token is cross-entropy on a sampled
    label.

    There is no temperature: the draws are of the teacher at temperature 1, and a sample cannot be tempered afterwards.

    Raises InputError where the target is not Sampled.
    """

    def ids(self, target: Any) -> Array:
        if not isinstance(target, Sampled):
            raise InputError(
                f"SampledCrossEntropy needs tokens sampled from a teacher, not {type(target).__name__}: "
                "give experiment.teacher a cache of samples, or use ForwardKL with a whole distribution"
            )
        return target.id_BLS

    def value(self, lse_BL: Array, z_BLS: Array, target: Any) -> Array:
        return jnp.sum(target.weight_BLS * (lse_BL[..., None] - z_BLS), axis=-1)
