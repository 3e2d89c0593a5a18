"""The hand-written kernels as implementations: each stands in for some steps that XLA does otherwise.

A kernel sees flat tokens, ascending ids and the rows of one device; what turns chunks, shards and any order of ids into
that, and back, is here. Pallas is imported where a kernel is used: it takes every process half a second.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill import device
from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.blocks import GpuBlocks, TpuBlocks
from jaxdistill.losses.linear_heads.sharding import Gradient
from jaxdistill.losses.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class PallasTpu:
    """The TPU kernels: elementwise ones beside XLA's matmuls in mode "forward", the fused pair in mode "recompute".

    Attributes:
      blocks: sizes; None takes those for the chip.
      interpret: run on a CPU, to test.
    """

    blocks: TpuBlocks | None = None
    interpret: Any = False

    def statistics(self, z_BLV: Array, id_BLS: Array, T: float, vocabulary: Vocabulary) -> tuple[Array, Array]:
        """Log-normaliser of z / T, and z at the ids, over all shards."""
        from jaxdistill.losses.linear_heads.sparse import pallas_tpu_elementwise

        ids = _Ids(id_BLS, vocabulary)
        lse_T, z_TS = pallas_tpu_elementwise.statistics(
            _flat(z_BLV), ids.ascending_TS, temperature=T, blocks=self.blocks, interpret=self.interpret
        )
        return vocabulary.add_log(ids.tokens(lse_T)), vocabulary.add(ids.as_given(z_TS))

    def gradient(
        self,
        z_BLV: Array,
        id_BLS: Array,
        lse_BL: Array,
        dlse_BL: Array,
        dz_BLS: Array,
        T: float,
        vocabulary: Vocabulary,
    ) -> Array:
        """What `statistics` takes back to this shard's logits."""
        from jaxdistill.losses.linear_heads.sparse import pallas_tpu_elementwise

        ids = _Ids(id_BLS, vocabulary)
        dz_TV = pallas_tpu_elementwise.gradient(
            _flat(z_BLV), ids.ascending_TS, lse_BL.reshape(-1), dlse_BL.reshape(-1), ids.ascend(dz_BLS),
            dtype=z_BLV.dtype, temperature=T, blocks=self.blocks, interpret=self.interpret,
        )  # fmt: skip
        return dz_TV.reshape(z_BLV.shape)

    def picks(self, head: Head, id_BLS: Array, T: float, vocabulary: Vocabulary) -> tuple[Array, Array]:
        """As `statistics`, from the head: no logits leave the chip's fast memory."""
        from jaxdistill.losses.linear_heads.sparse import pallas_tpu_forward

        ids = _Ids(id_BLS, vocabulary)
        lse_T, z_TS = pallas_tpu_forward.forward(
            *_operands(head), ids.ascending_TS, **self._options(head, T, vocabulary)
        )
        return vocabulary.add_log(ids.tokens(lse_T)), vocabulary.add(ids.as_given(z_TS))

    def picks_gradient(
        self, head: Head, id_BLS: Array, lse_BL: Array, dlse_BL: Array, dz_BLS: Array, T: float, vocabulary: Vocabulary
    ) -> Gradient:
        """What `picks` takes back to the head."""
        from jaxdistill.losses.linear_heads.sparse import pallas_tpu_backward

        ids = _Ids(id_BLS, vocabulary)
        dh_TD, dw_VD, dbias_V = pallas_tpu_backward.backward(
            *_operands(head), ids.ascending_TS, lse_BL.reshape(-1), dlse_BL.reshape(-1), ids.ascend(dz_BLS),
            **self._options(head, T, vocabulary),
        )  # fmt: skip
        return Gradient(vocabulary.add(dh_TD.reshape(head.h_BLD.shape)), dw_VD, dbias_V)

    def _options(self, head: Head, T: float, vocabulary: Vocabulary) -> dict[str, Any]:
        return {
            "scale": head.scale, "softcap": head.softcap, "vocab_size": _real_rows(head, vocabulary), "temperature": T,
            "blocks": self.blocks, "interpret": self.interpret,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PallasMgpu:
    """The Mosaic GPU kernel, in mode "recompute": the normaliser without logits; picked logits from gathered rows.

    Its gradient is XLA's, over tiles. Attributes as `PallasTpu`.
    """

    blocks: GpuBlocks | None = None
    interpret: Any = None

    def picks(self, head: Head, id_BLS: Array, T: float, vocabulary: Vocabulary) -> tuple[Array, Array]:
        """Log-normaliser of z, and z at the ids, over all shards."""
        from jaxdistill.losses.linear_heads.sparse import pallas_mgpu

        if T != 1 or head.bias_V is not None:
            raise InputError(
                "the Mosaic GPU kernel knows neither a temperature nor a bias: take implementation 'chunked'"
            )
        h_TD, w_VD, _ = _operands(head)
        lse_T = pallas_mgpu.normaliser(
            h_TD, w_VD, scale=head.scale, softcap=head.softcap, vocab_size=_real_rows(head, vocabulary),
            blocks=self.blocks, interpret=self.interpret,
        )  # fmt: skip
        row_BLS = id_BLS - vocabulary.first
        here_BLS = (row_BLS >= 0) & (row_BLS < w_VD.shape[0])
        rows = w_VD[jnp.where(here_BLS, row_BLS, 0)]
        product = jnp.einsum("bld,blsd->bls", head.h_BLD, rows, preferred_element_type=jnp.float32)
        z_BLS = head.scale * product
        z_BLS = z_BLS if head.softcap is None else head.softcap * jnp.tanh(z_BLS / head.softcap)
        return vocabulary.add_log(lse_T.reshape(id_BLS.shape[:2])), vocabulary.add(jnp.where(here_BLS, z_BLS, 0))


class _Ids:
    """Ids as the kernels want them: of this shard, flat, ascending for each token; and the way back."""

    def __init__(self, id_BLS: Array, vocabulary: Vocabulary):
        self._shape = id_BLS.shape
        local_TS = _flat(id_BLS - vocabulary.first)
        self._order_TS = jnp.argsort(local_TS, axis=-1)
        self.ascending_TS = jnp.take_along_axis(local_TS, self._order_TS, axis=-1)

    def tokens(self, x_T: Array) -> Array:
        return x_T.reshape(self._shape[:2])

    def ascend(self, x_BLS: Array) -> Array:
        """Numbers that belong to the ids as given, in the kernels' order."""
        return jnp.take_along_axis(_flat(x_BLS), self._order_TS, axis=-1)

    def as_given(self, x_TS: Array) -> Array:
        """Numbers in the kernels' order, in that of the ids as given."""
        return jnp.take_along_axis(x_TS, jnp.argsort(self._order_TS, axis=-1), axis=-1).reshape(self._shape)


def _flat(x_BLV: Array) -> Array:
    return x_BLV.reshape(-1, x_BLV.shape[-1])


def _operands(head: Head) -> tuple[Array, Array, Array | None]:
    bias_V = None if head.bias_V is None else head.bias_V.astype(jnp.float32)
    return _flat(head.h_BLD), head.w_VD.astype(head.h_BLD.dtype), bias_V


def _real_rows(head: Head, vocabulary: Vocabulary) -> Array:
    """How many rows of this shard are real."""
    return jnp.clip(head.vocab_size - vocabulary.first, 0, head.w_VD.shape[0])


Kernels = PallasTpu | PallasMgpu | None  # None: XLA alone

DEFAULT = {"cpu": "chunked", "gpu": "chunked", "tpu": "chunked"}


def choose(implementation: Any, mode: str) -> Kernels:
    """The kernels that an implementation's name stands for; None takes the platform's default.

    Raises InputError where there is no such implementation of this mode.
    """
    if isinstance(implementation, PallasTpu | PallasMgpu):
        return implementation
    name = implementation or DEFAULT.get(device.platform(), "chunked")
    known: dict[str, Kernels] = {"chunked": None, "pallas_tpu": PallasTpu()}
    if mode == "recompute":
        known["pallas_mgpu"] = PallasMgpu()
    if name not in known:
        names = ", ".join(map(repr, [*known, "reference"]))
        raise InputError(f"mode {mode!r} has no implementation {name!r}; there are {names}")
    return known[name]
