"""The definition: form all logits, normalise, sort. Use it to check the fast version."""

from typing import NamedTuple

import jax
from jax import Array

from jaxdistill.head import Head


class Top(NamedTuple):
    """The K most probable tokens, the most probable first, of two alike the one with the smaller id.

    Attributes:
      id_BLS: int32.
      logp_BLS: their log-probabilities in nats, fp32, normalised over the whole vocabulary.
      lse_BL: the log-normaliser of the logits, fp32.
    """

    id_BLS: Array
    logp_BLS: Array
    lse_BL: Array


def top_k(head: Head, k: int) -> Top:
    """The K largest logits of every token, less the log-normaliser."""
    z_BLV = head.logits()
    lse_BL = jax.nn.logsumexp(z_BLV, axis=-1)
    z_BLS, id_BLS = jax.lax.top_k(z_BLV, k)
    return Top(id_BLS, z_BLS - lse_BL[..., None], lse_BL)
