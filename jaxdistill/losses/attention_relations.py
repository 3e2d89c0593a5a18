"""Relations between positions, as attention would see them: MiniLM's losses, for models of any width and head count."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED


@dataclasses.dataclass(frozen=True)
class RelationKL:
    """mean over relation heads of KL(R_teacher || R), R = softmax(x x^T / sqrt(d)) (MiniLMv2, arXiv 2012.15828).

    x are the queries, keys or values of one layer: the heads are laid side by side and cut again into `heads` relation
    heads of size d, so the two models may differ in width, head count and layer. Rows see earlier positions of their
    own segment only, as a decoder does; segment 0 is padding. The paper takes the sum of three such terms, for queries,
    keys and values.

    Attributes:
      heads: relation heads; it must divide the joint width of the heads of both models.
    """

    heads: int

    def __call__(self, x_BLHK: Array, target_BLHK: Array, segment_BL: Array) -> Array:
        """Student's [B, L, H, K], teacher's [B, L, H', K'] and int32 [B, L] to fp32 [B, L].

        Raises InputError where the relation heads do not share out a width.
        """
        L = segment_BL.shape[1]
        sees_BLM = (segment_BL[:, :, None] == segment_BL[:, None, :]) & jnp.tril(jnp.ones((L, L), bool))
        is_real_BLHK = (segment_BL != 0)[..., None, None]  # padding may hold anything, and 0 * NaN is NaN
        both = (jnp.where(is_real_BLHK, x, 0) for x in (jax.lax.stop_gradient(target_BLHK), x_BLHK))
        log_r, log_s = (self._log_relations(x, sees_BLM) for x in both)
        return jnp.mean(jnp.sum(jnp.exp(log_r) * (log_r - log_s), axis=-1), axis=1)

    def _log_relations(self, x_BLHK: Array, sees_BLM: Array) -> Array:
        """fp32 [B, heads, L, M]."""
        B, L, H, K = x_BLHK.shape
        if H * K % self.heads:
            raise InputError(
                f"{self.heads} relation heads cannot share out {H} heads of size {K}; choose a divisor of {H * K}"
            )
        x = x_BLHK.reshape(B, L, self.heads, -1).astype(jnp.float32)
        scores = jnp.einsum("blhk,bmhk->bhlm", x, x) / jnp.sqrt(x.shape[-1])
        return jax.nn.log_softmax(jnp.where(sees_BLM[:, None], scores, MASKED), axis=-1)
