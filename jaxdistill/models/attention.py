"""Causal self-attention: projections, positions, and the mixing of values.

Matmuls run in the dtype of their input; rotations and the softmax are computed in fp32.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdistill import device
from jaxdistill.head import MASKED
from jaxdistill.models import norms, splash
from jaxdistill.models.adapters import add_adapter
from jaxdistill.models.decoding import Past
from jaxdistill.models.rotary import Angles, rotate
from jaxdistill.models.weights import add_bias, bias, matrix
from jaxdistill.shard import Shard

Implementation = Literal["blocks", "splash", "xla", "cudnn"] | None
"""Who mixes the values: `attend` here, JAX's kernels for TPU where they serve (`splash`), or its functions for any
platform; None takes the platform's default."""

DEFAULT: Mapping[str, Implementation] = {"cpu": "blocks", "tpu": "splash"}
"""On CPUs by benchmarks/huggingface_forward.py. On TPUs because whole scores do not fit: at 8192 positions they are
8 GiB of fp32 a sequence and layer of Llama 3.1 8B (benchmarks/plans.py). Elsewhere JAX chooses."""

BLOCK, BLOCKS = 64, 8  # queries of a block at least, and blocks at most: few enough to write out for any length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """What the attention of a layer sees of a sequence.

    Attributes:
      mask: True where a query may look, bool [B or 1, 1, L, M].
      angles: of the rotary embedding; None where positions are learned.
      past: keys and values of tokens before, which M then counts; None where the sequence is all there is.
      segment_BL: what the mask keeps apart, for kernels that make their own; None: one document.
      is_local: bool, whether the layer has the window, where some have and some have not.
    """

    mask: Array
    angles: Angles | None
    past: Past | None = None
    segment_BL: Array | None = None
    is_local: Array | None = None


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


def scores(q_BLHK: Array, k_BMJK: Array, mask: Array, scale: float, softcap: float | None) -> Array:
    """softcap(scale q . k) where the mask is True, `MASKED` elsewhere; fp32 [B, J, L, H/J, M].

    The query heads that share keys are rows of one matrix, so that keys are never repeated.
    """
    (B, L, H, K), J = q_BLHK.shape, k_BMJK.shape[2]
    rows = q_BLHK.reshape(B, L, J, -1).swapaxes(1, 2).reshape(B, J, -1, K)
    product = jnp.einsum("bjrk,bjmk->bjrm", rows, k_BMJK.swapaxes(1, 2), preferred_element_type=jnp.float32)
    found = scale * product.reshape(B, J, L, H // J, -1)
    if softcap is not None:
        found = softcap * jnp.tanh(found / softcap)
    return jnp.where(mask[:, :, :, None], found, MASKED)


def probabilities(q_BLHK: Array, k_BMJK: Array, mask: Array, scale: float, softcap: float | None) -> Array:
    """softmax over M of the scores, fp32 [B, H, L, M]: where each query looks, all of it in memory."""
    B, L, H, _ = q_BLHK.shape
    p = jax.nn.softmax(scores(q_BLHK, k_BMJK, mask, scale, softcap), axis=-1)
    return p.swapaxes(2, 3).reshape(B, H, L, -1)


def attend(
    q_BLHK: Array,
    k_BMJK: Array,
    v_BMJK: Array,
    mask: Array,
    scale: float,
    softcap: float | None = None,
    *,
    last: bool = True,
) -> Array:
    """The values under the probabilities, [B, L, H, K] in their dtype, by blocks of queries.

    Where the L queries are the `last` of the M positions of the keys, it is causal by construction: query i sees no key
    after M - L + i, whatever the mask says, and a block reads the keys up to its end: at L = M, little over half of
    them. Else a block reads all keys.
    """
    L, M = q_BLHK.shape[1], k_BMJK.shape[1]
    size = max(BLOCK, math.ceil(L / BLOCKS))
    blocks = []
    for start in range(0, L, size):
        stop = min(start + size, L)
        seen = M - L + stop if last else M
        part = q_BLHK[:, start:stop], k_BMJK[:, :seen], v_BMJK[:, :seen], mask[:, :, start:stop, :seen]
        blocks.append(_attend_block(*part, scale, softcap))
    return jnp.concatenate(blocks, axis=1)


def _attend_block(q_BLHK, k_BMJK, v_BMJK, mask, scale, softcap) -> Array:
    """The values under the probabilities, which are divided by their sum only after the product: K numbers, not M."""
    B, L, H, K = q_BLHK.shape
    masked = scores(q_BLHK, k_BMJK, mask, scale, softcap)
    # the largest score cancels in the ratio: nothing flows back through it
    weights = jnp.exp(masked - jax.lax.stop_gradient(masked.max(axis=-1, keepdims=True)))
    v_BJMK = v_BMJK.swapaxes(1, 2)
    rows = weights.astype(v_BJMK.dtype).reshape(*v_BJMK.shape[:2], -1, v_BJMK.shape[2])
    product = jnp.einsum("bjrm,bjmk->bjrk", rows, v_BJMK, preferred_element_type=jnp.float32)
    mixed = product.reshape(*weights.shape[:-1], K) / weights.sum(axis=-1, keepdims=True)
    return mixed.reshape(*v_BJMK.shape[:2], L, -1).swapaxes(1, 2).reshape(B, L, H, K).astype(v_BMJK.dtype)


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

    def project(self, x_BLD: Array, angles: Angles | None, shard: Shard) -> tuple[Array, Array, Array]:
        """Queries [B, L, H, K], keys and values [B, L, J, K] of the tokens at hand, as they enter the dot product."""
        dtype = x_BLD.dtype
        q_BLHK = shard(jnp.einsum("bld,dhk->blhk", x_BLD, self.q_DHK[...].astype(dtype)), "BLHK")
        k_BLJK = shard(jnp.einsum("bld,djk->bljk", x_BLD, self.k_DJK[...].astype(dtype)), "BLJK")
        v_BLJK = shard(jnp.einsum("bld,djk->bljk", x_BLD, self.v_DJK[...].astype(dtype)), "BLJK")
        q_BLHK = add_adapter(q_BLHK, x_BLD, self, "q_DHK")
        k_BLJK, v_BLJK = add_adapter(k_BLJK, x_BLD, self, "k_DJK"), add_adapter(v_BLJK, x_BLD, self, "v_DJK")
        q_BLHK = add_bias(q_BLHK, self, "q_bias_HK")
        k_BLJK, v_BLJK = add_bias(k_BLJK, self, "k_bias_JK"), add_bias(v_BLJK, self, "v_bias_JK")
        if self.config.qk_norm:
            q_BLHK = norms.call(self, "q_norm", "K", q_BLHK, self.config)
            k_BLJK = norms.call(self, "k_norm", "K", k_BLJK, self.config)
        if angles is not None:
            q_BLHK, k_BLJK = rotate(q_BLHK, angles), rotate(k_BLJK, angles)
        return q_BLHK, k_BLJK, v_BLJK

    @property
    def scale(self) -> float:
        """The factor on q . k."""
        given = self.config.design.attention.scale
        return 1 / math.sqrt(self.config.head_size) if given is None else given

    def probabilities(self, q_BLHK: Array, k_BMJK: Array, mask: Array) -> Array:
        """Where each query looks, fp32 [B, H, L, M]."""
        return probabilities(q_BLHK, k_BMJK, mask, self.scale, self.config.design.attention.softcap)

    def _mix(
        self,
        q_BLHK: Array,
        k_BMJK: Array,
        v_BMJK: Array,
        mask: Array,
        implementation: Implementation,
        *,
        last: bool = True,
    ) -> Array:
        """The values under the probabilities, [B, L, H, K]; `last` is as `attend` has it.

        JAX chooses how where "splash" cannot serve.
        """
        softcap = self.config.design.attention.softcap
        if softcap is not None or implementation == "blocks":  # no function of JAX computes a soft-cap
            return attend(q_BLHK, k_BMJK, v_BMJK, mask, self.scale, softcap, last=last)
        return jax.nn.dot_product_attention(
            q_BLHK, k_BMJK, v_BMJK, mask=mask, scale=self.scale,
            implementation=None if implementation == "splash" else implementation,
        )  # fmt: skip

    def _mix_parts(
        self, q_BLHK: Array, k_BLJK: Array, v_BLJK: Array, mask: Array, shard: Shard, implementation: Implementation
    ) -> Array:
        """As `_mix`, where devices share out the positions: each gathers all keys and values for its own queries.

        A layer moves its keys and values once, and their gradients back. All devices work alike, on the keys that the
        mask hides too.
        """

        def on_device(q_BLHK: Array, k_BLJK: Array, v_BLJK: Array, mask_BLM: Array) -> Array:
            k_BMJK, v_BMJK = (shard.gather(x, "BLJK", "L") for x in (k_BLJK, v_BLJK))
            return self._mix(q_BLHK, k_BMJK, v_BMJK, mask_BLM[:, None], implementation, last=False)

        return shard.local(on_device, "BLHK", q_BLHK=q_BLHK, k_BLJK=k_BLJK, v_BLJK=v_BLJK, mask_BLM=mask[:, 0])

    def _splash(self, q_BLHK: Array, k_BLJK: Array, v_BLJK: Array, view: View, shard: Shard) -> Array:
        """As `_mix`, by kernels that form no scores, wherever the positions are."""
        design = self.config.design.attention
        arrays = q_BLHK, k_BLJK, v_BLJK, view.segment_BL
        call = functools.partial(splash.attend, shard=shard, scale=self.scale, softcap=design.softcap)
        if design.window is None or view.is_local is None:
            return call(*arrays, window=None if design.window is None else design.window.size)
        local = functools.partial(call, window=design.window.size)
        return jax.lax.cond(view.is_local, local, call, *arrays)

    def __call__(
        self,
        x_BLD: Array,
        view: View,
        shard: Shard,
        *,
        implementation: Implementation = None,
        keep: tuple[str, ...] = (),
    ) -> tuple[Array, dict[str, Array]]:
        """The attention's output [B, L, D], and what it has of the arrays named in `keep`."""
        q_BLHK, k_BLJK, v_BLJK = self.project(x_BLD, view.angles, shard)
        seen = {"queries": q_BLHK, "keys": k_BLJK, "values": v_BLJK}
        k_BMJK, v_BMJK = (k_BLJK, v_BLJK) if view.past is None else view.past.join(k_BLJK, v_BLJK)
        if "attention" in keep:
            seen["attention"] = self.probabilities(q_BLHK, k_BMJK, view.mask)
        implementation = implementation or DEFAULT.get(device.platform())
        if implementation == "splash" and view.past is None and splash.serves(x_BLD.shape[1], shard):
            mixed_BLHK = self._splash(q_BLHK, k_BLJK, v_BLJK, view, shard)
        elif view.past is None and shard.axes("L", "BL"):
            mixed_BLHK = self._mix_parts(q_BLHK, k_BLJK, v_BLJK, view.mask, shard, implementation)
        else:
            mixed_BLHK = self._mix(q_BLHK, k_BMJK, v_BMJK, view.mask, implementation)
        out_BLD = jnp.einsum("blhk,hkd->bld", mixed_BLHK, self.o_HKD[...].astype(x_BLD.dtype))
        return add_bias(add_adapter(out_BLD, mixed_BLHK, self, "o_HKD"), self, "o_bias_D"), seen
