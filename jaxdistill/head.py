"""Head: an output layer and the hidden states that enter it, which together stand for logits nobody forms whole.

A model gives a Head in place of logits, a loss receives one. It sits below both rooms, so that neither imports the
other.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

MASKED = -1e30  # a logit no softmax sees; finite, so that 0 * (MASKED - MASKED) stays 0 where -inf would give NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """logits_BLV = softcap(scale * h_BLD w_VD^T + bias_V), in fp32, with the padded rows of `w_VD` masked out.

    Attributes:
      h_BLD: hidden states after the last norm, in the compute dtype; the matmul runs in this dtype and accumulates
      fp32.
      w_VD: output embedding, [V, D] with V >= vocab_size; rows past `vocab_size` are padding and never count.
      bias_V: optional bias, added before the soft-cap.
      scale: factor on the product (width-transferable learning rates use it).
      softcap: cap * tanh(logit / cap) where given (Gemma 2).
      vocab_size: the tokenizer's size.
    """

    h_BLD: Array
    w_VD: Array
    bias_V: Array | None = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    softcap: float | None = dataclasses.field(default=None, metadata={"static": True})
    vocab_size: int = dataclasses.field(kw_only=True, metadata={"static": True})

    def product(self) -> Array:
        """h_BLD w_VD^T as fp32 [B, L, V]: the matmul alone."""
        w_VD = self.w_VD.astype(self.h_BLD.dtype)
        return jnp.einsum("bld,vd->blv", self.h_BLD, w_VD, preferred_element_type=jnp.float32)

    def finish(self, product_BLV: Array, bias_V: Array | None, first: Array | int = 0) -> Array:
        """Everything of the logits that follows the matmul: scale, bias, soft-cap, mask of the padded vocabulary.

        `first` is the id of the first column, where the columns are a part of the vocabulary.
        """
        z_BLV = self.scale * product_BLV
        if bias_V is not None:
            z_BLV = z_BLV + bias_V.astype(jnp.float32)
        if self.softcap is not None:
            z_BLV = self.softcap * jnp.tanh(z_BLV / self.softcap)
        columns = z_BLV.shape[-1]
        if isinstance(first, int) and first + columns <= self.vocab_size:
            return z_BLV
        real_V = first + jax.lax.iota(jnp.int32, columns) < self.vocab_size
        return jnp.where(real_V, z_BLV, MASKED)

    def logits(self, first: Array | int = 0) -> Array:
        """The logits whole, fp32 [B, L, V]: for a chunk of positions, or a model small enough to look at.

        `first` is as in `finish`.
        """
        return self.finish(self.product(), self.bias_V, first)
