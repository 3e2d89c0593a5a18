"""The decoder: a configuration, its parameters as a pure nested dict, and three functions.

    params       = model.init(key)
    h_BLD, kept  = model.hidden(params, tokens_BL, segment_BL, position_BL, keep=(3, 7))
    head         = model.head(params, h_BLD)          # never [B, L, V] logits

Layers are authored in Flax NNX (`layers.Block`) and carried as stacked arrays: `params["layers"]` has the structure of
one block with a leading dimension N, and `hidden` binds one slice at a time to the module inside a scan.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.models import layers

Params = dict[str, Any]
Shard = Callable[[Array, str], Array]


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a decoder.

    Attributes:
      vocab_size: the tokenizer's size; the embedding has `padded_vocab_size` rows and the rest never count.
      num_layers, width, num_heads, num_kv_heads, head_size, mlp_width: N, D, H, J, K and F.
      tied: one embedding for input and output.
      qk_norm: normalise queries and keys per head.
      rope_base, norm_eps: of the rotary embedding and of every norm.
      softcap: cap on the logits, as in Gemma 2.
      base_width: the width at which the learning rate is stated (see `lr_multiplier`).
      vocab_multiple: the embedding's rows are padded to a multiple of this, so that a mesh can divide them.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    head_size: int
    mlp_width: int
    num_kv_heads: int = 0
    tied: bool = True
    qk_norm: bool = True
    rope_base: float = 500_000.0
    norm_eps: float = 1e-6
    softcap: float | None = None
    base_width: int = 128
    vocab_multiple: int = 128

    def __post_init__(self):
        if self.num_kv_heads == 0:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        for name in ("vocab_size", "num_layers", "width", "num_heads", "num_kv_heads", "head_size", "mlp_width",
                     "base_width", "vocab_multiple"):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("rope_base", "norm_eps", "softcap"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"model.num_heads ({self.num_heads}) must be a multiple of model.num_kv_heads ({self.num_kv_heads})"
            )
        if self.head_size % 2:
            raise InputError(f"model.head_size is {self.head_size}; rotary positions need an even one")

    @property
    def padded_vocab_size(self) -> int:
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple

    @property
    def dims(self) -> dict[str, int]:
        """The size of every letter that a parameter of this model may carry."""
        return {
            "V": self.padded_vocab_size, "N": self.num_layers, "D": self.width, "H": self.num_heads,
            "J": self.num_kv_heads, "K": self.head_size, "F": self.mlp_width,
        }  # fmt: skip

    @property
    def num_params(self) -> int:
        """Parameters without embeddings, norm gains included: the N of the scaling laws (arXiv 2502.08606, App. H)."""
        D, H, J, K, F = self.width, self.num_heads, self.num_kv_heads, self.head_size, self.mlp_width
        attention = 2 * D * H * K + 2 * D * J * K + (2 * K if self.qk_norm else 0)
        return self.num_layers * (attention + 3 * D * F + 2 * D) + D

    @property
    def num_params_total(self) -> int:
        """Parameters with the embeddings, counted at the tokenizer's size (the padding is not part of the model)."""
        return self.num_params + self.vocab_size * self.width * (1 if self.tied else 2)

    def lr_multiplier(self, own: str) -> float:
        """The factor on the learning rate of a parameter with these letters: base_width / width for hidden matrices,
        else 1.

        This is the simple form of maximal-update parametrisation (Wortsman et al. 2023, "muParam (simple)"); embeddings
        and gains keep the plain rate, and the output's 1 / width sits in `Head.scale`.
        """
        hidden_matrix = "V" not in own and len(own.removeprefix("N")) > 1
        return self.base_width / self.width if hidden_matrix else 1.0


@functools.lru_cache
def _block(config: Config) -> tuple[Any, Any]:
    """The structure of one block, without arrays."""
    return nnx.split(nnx.eval_shape(lambda: layers.Block(config, rngs=nnx.Rngs(0))))


def _bind(config: Config, params: Params) -> layers.Block:
    """One layer's parameters as a live module, inside a trace."""
    graph, abstract = _block(config)
    state = jax.tree.map(lambda x: x, abstract)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A decoder of the shape `config`.

    Attributes:
      dtype: of activations and matmul inputs; parameters are kept in fp32 and cast where they are used.
      shard: called as shard(x, "BLD") on every activation worth placing; the identity runs on one device.
      remat: recompute each layer in the backward pass instead of keeping its activations.
    """

    config: Config
    dtype: Any = jnp.float32
    shard: Shard = lambda x, own: x
    remat: bool = False

    def init(self, key: Array) -> Params:
        """Fresh fp32 parameters. Embedding rows have unit variance, which `Head.scale` brings back to unit logits."""
        config = self.config

        def init_block(key):
            return nnx.to_pure_dict(nnx.state(layers.Block(config, rngs=nnx.Rngs(params=key))))

        embed_key, head_key, layers_key = jax.random.split(key, 3)
        vocabulary = (config.padded_vocab_size, config.width)
        params = {
            "embed_VD": jax.random.normal(embed_key, vocabulary),
            "layers": jax.vmap(init_block)(jax.random.split(layers_key, config.num_layers)),
            "norm_D": jnp.ones(config.width),
        }
        return params if config.tied else params | {"head_VD": jax.random.normal(head_key, vocabulary)}

    def hidden(
        self,
        params: Params,
        tokens_BL: Array,
        segment_BL: Array | None = None,
        position_BL: Array | None = None,
        *,
        keep: Sequence[int] = (),
    ) -> tuple[Array, dict[int, Array]]:
        """Hidden states after the last norm, [B, L, D] in `dtype`, and the outputs of the layers named in `keep`.

        Args:
          params: as `init` gives them.
          tokens_BL: int32 ids below `vocab_size`.
          segment_BL: which document of a packed row a token belongs to; attention stays inside. None: one document.
          position_BL: positions for the rotary embedding. None: 0, 1, 2, ...
          keep: layers whose output is returned as {layer: [B, L, D]}, counted from 0, or backward from -1; nothing is
            stored for the others. InputError where the model has no such layer.
        """
        config, (B, L) = self.config, tokens_BL.shape
        if unknown := [i for i in keep if not -config.num_layers <= i < config.num_layers]:
            raise InputError(f"keep={tuple(keep)} names layer {unknown[0]} of a model with {config.num_layers} layers")
        if position_BL is None:
            position_BL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), (B, L))
        angles = layers.rotary_angles(position_BL, config.head_size, config.rope_base)
        mask = layers.causal_mask(segment_BL, L)

        def block(x_BLD, layer_params):
            return _bind(config, layer_params)(x_BLD, angles, mask, self.shard), None

        layer = jax.checkpoint(block) if self.remat else block
        x_BLD = self.shard(params["embed_VD"].astype(self.dtype)[tokens_BL], "BLD")
        kept, start = {}, 0
        for stop in [*sorted({i % config.num_layers + 1 for i in keep}), config.num_layers]:
            piece = jax.tree.map(lambda p: p[start:stop], params["layers"])  # noqa: B023
            x_BLD, _ = jax.lax.scan(layer, x_BLD, piece)
            kept[stop - 1], start = x_BLD, stop
        return layers.rms_norm(x_BLD, params["norm_D"], config.norm_eps), {i: kept[i % config.num_layers] for i in keep}

    def head(self, params: Params, h_BLD: Array) -> Head:
        """The output layer on `h_BLD`. The scale sqrt(base_width) / width gives unit logits at base_width and makes the
        best learning rate independent of the width."""
        config = self.config
        return Head(
            h_BLD=h_BLD,
            w_VD=params["embed_VD" if config.tied else "head_VD"],
            scale=math.sqrt(config.base_width) / config.width,
            softcap=config.softcap,
            vocab_size=config.vocab_size,
        )
