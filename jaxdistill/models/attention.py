"""Causal self-attention: projections, positions, and the mixing of values.

Matmuls run in the dtype of their input; rotations and the softmax are computed in fp32.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdistill.head import MASKED
from jaxdistill.models import norms
from jaxdistill.models.decoding import Past
from jaxdistill.models.rotary import Angles, rotate
from jaxdistill.models.weights import add_bias, bias, matrix

Implementation = Literal["xla", "cudnn"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """What the attention of a layer sees of a sequence.

    Attributes:
      mask: True where a query may look, bool [B or 1, 1, L, M].
      angles: of the rotary embedding; None where positions are learned.
      past: keys and values of tokens before, which M then counts; None where the sequence is all there is.
    """

    mask: Array
    angles: Angles | None
    past: Past | None = None


def causal_mask(segment_BL: Array | None, length: int, window: int | None = None) -> Array:
    """True where a query may look: at itself and before, within its own segment and its last `window` positions.

    bool [B or 1, 1, L, M].
    """
    mask_LM = jnp.tril(jnp.ones((length, length), bool))
    if window is not None:
        mask_LM &= ~jnp.tril(jnp.ones((length, length), bool), -window)
    if segment_BL is None:
        return mask_LM[None, None]
    return mask_LM[None, None] & (segment_BL[:, None, :, None] == segment_BL[:, None, None, :])


def probabilities(q_BLHK: Array, k_BMJK: Array, mask: Array, scale: float, softcap: float | None) -> Array:
    """softmax over M of softcap(scale q . k), fp32 [B, H, L, M]: the definition, which forms every score."""
    B, L, H, K = q_BLHK.shape
    grouped = q_BLHK.reshape(B, L, k_BMJK.shape[2], -1, K)
    scores = scale * jnp.einsum("bljgk,bmjk->bjglm", grouped, k_BMJK, preferred_element_type=jnp.float32)
    scores_BHLM = scores.reshape(B, H, L, -1)
    if softcap is not None:
        scores_BHLM = softcap * jnp.tanh(scores_BHLM / softcap)
    return jax.nn.softmax(jnp.where(mask, scores_BHLM, MASKED), axis=-1)


def mix(p_BHLM: Array, v_BMJK: Array) -> Array:
    """The values under the probabilities, [B, L, H, K] in the dtype of the values."""
    (B, H, L, M), J = p_BHLM.shape, v_BMJK.shape[2]
    grouped = p_BHLM.reshape(B, J, H // J, L, M).astype(v_BMJK.dtype)
    return jnp.einsum("bjglm,bmjk->bljgk", grouped, v_BMJK).reshape(B, L, H, -1)


class Attention(nnx.Module):
    """Causal self-attention with grouped key/value heads and whatever the design adds."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, H, J, K = config.width, config.num_heads, config.num_kv_heads, config.head_size
        self.q_DHK = matrix(rngs, (D, H, K), fan_in=D)
        self.k_DJK = matrix(rngs, (D, J, K), fan_in=D)
        self.v_DJK = matrix(rngs, (D, J, K), fan_in=D)
        self.o_HKD = matrix(rngs, (H, K, D), fan_in=H * K)
        if config.design.attention.qkv_bias:
            self.q_bias_HK, self.k_bias_JK, self.v_bias_JK = bias(H, K), bias(J, K), bias(J, K)
        if config.design.attention.output_bias:
            self.o_bias_D = bias(D)
        if config.qk_norm:
            norms.declare(self, "q_norm", "K", K, config.design.norm)
            norms.declare(self, "k_norm", "K", K, config.design.norm)
        self.config = config

    def project(self, x_BLD: Array, angles: Angles | None, shard) -> tuple[Array, Array, Array]:
        """Queries [B, L, H, K], keys and values [B, L, J, K], as they enter the dot product."""
        dtype = x_BLD.dtype
        q_BLHK = shard(jnp.einsum("bld,dhk->blhk", x_BLD, self.q_DHK[...].astype(dtype)), "BLHK")
        k_BMJK = shard(jnp.einsum("bld,djk->bljk", x_BLD, self.k_DJK[...].astype(dtype)), "BMJK")
        v_BMJK = shard(jnp.einsum("bld,djk->bljk", x_BLD, self.v_DJK[...].astype(dtype)), "BMJK")
        q_BLHK = add_bias(q_BLHK, self, "q_bias_HK")
        k_BMJK, v_BMJK = add_bias(k_BMJK, self, "k_bias_JK"), add_bias(v_BMJK, self, "v_bias_JK")
        if self.config.qk_norm:
            q_BLHK = norms.call(self, "q_norm", "K", q_BLHK, self.config)
            k_BMJK = norms.call(self, "k_norm", "K", k_BMJK, self.config)
        if angles is not None:
            q_BLHK, k_BMJK = rotate(q_BLHK, angles), rotate(k_BMJK, angles)
        return q_BLHK, k_BMJK, v_BMJK

    @property
    def scale(self) -> float:
        """The factor on q . k."""
        given = self.config.design.attention.scale
        return 1 / math.sqrt(self.config.head_size) if given is None else given

    def probabilities(self, q_BLHK: Array, k_BMJK: Array, mask: Array) -> Array:
        """Where each query looks, fp32 [B, H, L, M]."""
        return probabilities(q_BLHK, k_BMJK, mask, self.scale, self.config.design.attention.softcap)

    def __call__(
        self, x_BLD: Array, view: View, shard, *, implementation: Implementation = None, keep: tuple[str, ...] = ()
    ) -> tuple[Array, dict[str, Array]]:
        """The attention's output [B, L, D], and what it has of the arrays named in `keep`."""
        q_BLHK, k_BMJK, v_BMJK = self.project(x_BLD, view.angles, shard)
        seen = {"queries": q_BLHK, "keys": k_BMJK, "values": v_BMJK}
        if view.past is not None:
            k_BMJK, v_BMJK = view.past.join(k_BMJK, v_BMJK)
        if "attention" in keep:
            seen["attention"] = self.probabilities(q_BLHK, k_BMJK, view.mask)
        if self.config.design.attention.softcap is not None:  # which no fused kernel of JAX computes
            mixed_BLHK = mix(self.probabilities(q_BLHK, k_BMJK, view.mask), v_BMJK)
        else:
            mixed_BLHK = jax.nn.dot_product_attention(
                q_BLHK, k_BMJK, v_BMJK, mask=view.mask, scale=self.scale, implementation=implementation
            )
        out_BLD = jnp.einsum("blhk,hkd->bld", mixed_BLHK, self.o_HKD[...].astype(x_BLD.dtype))
        return add_bias(out_BLD, self, "o_bias_D"), seen
