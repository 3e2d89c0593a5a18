"""The decoder: a configuration, its parameters as a pure nested dict, and its functions.

    params       = model.init(key)
    h_BLD, kept  = model.hidden(params, tokens_BL, segment_BL, position_BL, keep=(3, 7))
    head         = model.head(params, h_BLD)          # never [B, L, V] logits

    cache        = model.cache(batch, length)         # token by token: the same layers, which then keep their past
    h_BLD, cache = model.extend(params, tokens_BL, start_B, cache)

Layers are authored in Flax NNX (`block.Block`) and carried as stacked arrays: `params["layers"]` has the structure of
one block with a leading dimension N, and `hidden` binds one slice at a time to the module inside a scan. What differs
from layer to layer, the window, is an array of N that the scan carries beside the parameters.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.models import adapters, norms, quantised, rotary, subwords, taps
from jaxdistill.models.attention import Implementation, View, causal_mask
from jaxdistill.models.block import Block
from jaxdistill.models.decoding import Cache, Past, slot_mask
from jaxdistill.models.design import Design, LearnedPositions, Rotary
from jaxdistill.models.taps import Tap
from jaxdistill.shard import Shard

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a decoder of our own design; `variant.Variant` is a Config with a design of its choice.

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

    @property
    def design(self) -> Design:
        """The parts: ours, and so no field, which leaves the text and the identity of a run to what it chose."""
        return OURS

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
        if isinstance(self.design.position, Rotary) and self.rotary_size % 2:
            raise InputError(f"model.head_size is {self.head_size}; rotary positions need an even one")

    @property
    def rotary_size(self) -> int:
        """The dimensions of a head that turn with the position."""
        position = self.design.position
        return int(self.head_size * position.fraction) if isinstance(position, Rotary) else 0

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
        hidden_matrix = len(set(own) & set("DHJFE")) > 1
        return self.base_width / self.width if hidden_matrix else 1.0


OURS = Design()


@functools.lru_cache
def _block(config: Config) -> tuple[Any, Any]:
    """The structure of one block, without arrays."""
    return nnx.split(nnx.eval_shape(lambda: Block(config, rngs=nnx.Rngs(0))))


def _bind(config: Config, params: Params, adapter_scale: float) -> Block:
    """One layer's parameters as a live module, inside a trace."""
    graph, abstract = _block(config)
    state = jax.tree.map(lambda x: x, abstract)
    own_adapters, own = adapters.divide(params, adapters.is_adapter)
    nnx.replace_by_pure_dict(state, own)
    module = nnx.merge(graph, state)
    adapters.attach(module, own_adapters, adapter_scale)
    return module


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A decoder of the shape `config`.

    Attributes:
      dtype: of activations and matmul inputs; parameters are kept in fp32 and cast where they are used.
      shard: called as shard(x, "BLD") on every activation worth placing; the identity runs on one device.
      remat: recompute each layer in the backward pass instead of keeping its activations.
      implementation: of attention: "blocks" is ours and the default on CPUs; "splash" are JAX's kernels for TPU and the
        default there, for whole sequences of a multiple of 128 positions (for others JAX chooses); "xla" and "cudnn" as
        in `jax.nn.dot_product_attention`, of which "cudnn" is fused and wants bfloat16 on an NVIDIA GPU. None takes the
        platform's default. Models with a soft-cap on their scores have "blocks" and "splash" only.
      adapter_scale: factor on what the layers' adapters add, where parameters have some (`models.adapters`).
    """

    config: Config
    dtype: Any = jnp.float32
    shard: Shard = Shard()
    remat: bool = False
    implementation: Implementation = None
    adapter_scale: float = 1.0

    def init(self, key: Array) -> Params:
        """Fresh fp32 parameters. Embedding rows have unit variance, which `Head.scale` brings back to unit logits."""
        config, design = self.config, self.config.design

        def init_block(key):
            return nnx.to_pure_dict(nnx.state(Block(config, rngs=nnx.Rngs(params=key))))

        embed_key, head_key, layers_key = jax.random.split(key, 3)
        vocabulary = (config.padded_vocab_size, config.width)
        params = {
            "embed_VD": jax.random.normal(embed_key, vocabulary),
            "layers": jax.vmap(init_block)(jax.random.split(layers_key, config.num_layers)),
            **norms.fresh("norm", "D", config.width, design.norm),
        }
        if isinstance(design.position, LearnedPositions):
            table = (design.position.rows, config.width)
            params["position_PD"] = jax.random.normal(jax.random.fold_in(embed_key, 1), table)
        if design.subwords is not None:
            params[subwords.NAME] = subwords.fresh(design.subwords.num, design.subwords.longest, config.width)
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
          position_BL: positions of the tokens. None: 0, 1, 2, ...
          keep: layers whose output is returned as {layer: [B, L, D]}, counted from 0, or backward from -1; nothing is
            stored for the others. InputError where the model has no such layer.
        """
        return self.look(params, tokens_BL, segment_BL, position_BL, keep=keep)[:2]

    def look(
        self,
        params: Params,
        tokens_BL: Array,
        segment_BL: Array | None = None,
        position_BL: Array | None = None,
        *,
        keep: Sequence[int] = (),
        inside: Sequence[Tap] = (),
    ) -> tuple[Array, dict[int, Array], dict[Tap, Array]]:
        """As `hidden`, and what `inside` names: pairs (name, layer) of something that a layer computes with.

        "queries" [B, L, H, K], "keys" and "values" [B, L, J, K] as they enter the dot product; "attention", the
        probabilities in fp32 [B, H, L, M]; "router", the logits of a mixture of experts in fp32 [B, L, E]. They are
        returned as {(name, layer): array}; nothing is computed or stored for other layers. InputError where the model
        has no such layer, or the layer no such thing.
        """
        config, (B, L) = self.config, tokens_BL.shape
        outputs = {n: (taps.OUTPUT, taps.layer(n, config)) for n in keep}
        parts = {tap: taps.place(tap, config) for tap in inside}
        if position_BL is None:
            position_BL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), (B, L))
        self._check_length(L)
        views = self._views(position_BL, functools.partial(causal_mask, segment_BL, L))
        views = tuple(dataclasses.replace(view, segment_BL=segment_BL) for view in views)

        def block(names, x_BLD, layer):
            return self._layer(views, x_BLD, *layer, keep=names)

        x_BLD = self._embed(params, tokens_BL, position_BL)
        stacked, found = (params["layers"], local_layers(config)), {}
        for start, stop in itertools.pairwise(taps.cuts(outputs.values(), parts.values(), config.num_layers)):
            names = tuple(sorted({name for name, n in parts.values() if n == start}))
            layer = functools.partial(block, names)
            piece = jax.tree.map(lambda p: p[start:stop], stacked)  # noqa: B023
            x_BLD, seen = jax.lax.scan(jax.checkpoint(layer) if self.remat else layer, x_BLD, piece)
            found |= {(taps.OUTPUT, stop - 1): x_BLD} | {(name, start): array[0] for name, array in seen.items()}
        kept = {n: found[place] for n, place in outputs.items()}
        return self._last_norm(params, x_BLD), kept, {tap: found[place] for tap, place in parts.items()}

    def cache(self, batch: int, length: int) -> Cache:
        """Room for `length` tokens in each of `batch` rows; InputError where the model has learned fewer positions, or
        where it reads subwords, which are of more than one token.
        """
        self._check_length(length)
        if self.config.design.subwords is not None:
            raise InputError("a model that reads subwords needs its text whole: it can be evaluated, and not generate")
        config = self.config
        shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_size)
        return Cache(*(self.shard(jnp.zeros(shape, self.dtype), "NBMJK") for _ in range(2)))

    def extend(self, params: Params, tokens_BL: Array, start_B: Array, cache: Cache) -> tuple[Array, Cache]:
        """Hidden states of tokens that follow those in a cache, as `hidden` would give them for the whole text, and the
        cache with these tokens in it.

        Args:
          params: as `init` gives them.
          tokens_BL: int32 ids: whole prompts, or one token a row, or anything between.
          start_B: int32, the position of a row's first token here. The cache must hold all positions before it, and
            have room for L from it on. Rows shorter than L are padded behind: nothing reads what the padding leaves
            in the cache once the text goes on over it.
          cache: as `cache` or `extend` gave it.
        """
        L, slots = tokens_BL.shape[1], cache.k_NBMJK.shape[2]
        position_BL = start_B[:, None] + jnp.arange(L, dtype=jnp.int32)
        views = self._views(position_BL, functools.partial(slot_mask, position_BL, slots))

        def block(x_BLD, layer):
            own, past = layer
            return self._layer(views, x_BLD, *own, keep=("keys", "values"), past=Past(*past, start_B))

        x_BLD = self._embed(params, tokens_BL, position_BL)
        stacked = (params["layers"], local_layers(self.config))
        x_BLD, new = jax.lax.scan(block, x_BLD, (stacked, tuple(cache)))
        cache = cache.write(new["keys"], new["values"], start_B)
        return self._last_norm(params, x_BLD), Cache(*(self.shard(kept, "NBMJK") for kept in cache))

    def _layer(
        self,
        views: tuple[View, ...],
        x_BLD: Array,
        layer_params: Params,
        is_local: Array | None,
        *,
        keep: tuple[str, ...],
        past: Past | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """One layer on the stream: its output, and what is kept of it."""
        view = views[0] if is_local is None else jax.tree.map(functools.partial(jnp.where, is_local), *views)
        view = dataclasses.replace(view, past=past, is_local=is_local)
        layer_params = quantised.widen(layer_params, self.dtype)
        module = _bind(self.config, layer_params, self.adapter_scale)
        return module(x_BLD, view, self.shard, implementation=self.implementation, keep=keep)

    def _last_norm(self, params: Params, x_BLD: Array) -> Array:
        config = self.config
        return norms.apply(x_BLD, params["norm_D"], params.get("norm_bias_D"), config.design.norm, config.norm_eps)

    def _check_length(self, length: int) -> None:
        position = self.config.design.position
        if isinstance(position, LearnedPositions) and (most := position.rows - position.offset) < length:
            raise InputError(f"{length} positions are more than the {most} that this model has learned: shorten them")

    def _embed(self, params: Params, tokens_BL: Array, position_BL: Array) -> Array:
        """The stream that enters the first layer."""
        design = self.config.design
        embed_VD = params["embed_VD"].astype(self.dtype)
        x_BLD = self.shard.local(functools.partial(_look_up, self.shard), "BLD", w_VD=embed_VD, tokens_BL=tokens_BL)
        if design.subwords is not None:
            x_BLD = x_BLD + subwords.added(params[subwords.NAME], tokens_BL, self.dtype, self.shard)
        if design.embed_scale != 1:
            x_BLD = x_BLD * jnp.asarray(design.embed_scale, self.dtype)
        if isinstance(design.position, LearnedPositions):
            x_BLD = x_BLD + params["position_PD"].astype(self.dtype)[position_BL + design.position.offset]
        return self.shard(x_BLD, "BLD")

    def _views(self, position_BL: Array, mask: Callable[[int | None], Array]) -> tuple[View, ...]:
        """What attention sees: one view for all layers, or that of layers with a window and that of the others.

        `mask` is called with the size of the window, or None.
        """
        config = self.config
        position, window = config.design.position, config.design.attention.window
        everywhere = window is not None and window.layers is None
        kinds = (True,) if everywhere else (False,) if window is None else (True, False)

        def view(is_local: bool) -> View:
            own_mask = mask(window.size if window is not None and is_local else None)
            if not isinstance(position, Rotary):
                return View(own_mask, None)
            base, scaling = config.rope_base, position.scaling
            if is_local and position.local_base is not None:
                base, scaling = position.local_base, None
            return View(own_mask, rotary.angles(position_BL, config.rotary_size, base, scaling))

        return tuple(view(is_local) for is_local in kinds)

    def head(self, params: Params, h_BLD: Array) -> Head:
        """The output layer on `h_BLD`. Our own scale, sqrt(base_width) / width, gives unit logits at base_width and
        makes the best learning rate independent of the width."""
        config, given = self.config, self.config.design.logit_scale
        return Head(
            h_BLD=h_BLD,
            w_VD=params["embed_VD" if config.tied else "head_VD"],
            scale=math.sqrt(config.base_width) / config.width if given is None else given,
            softcap=config.softcap,
            vocab_size=config.vocab_size,
        )


def _look_up(shard: Shard, w_VD: Array, tokens_BL: Array) -> Array:
    """The rows of these tokens, [B, L, D]: each device gives those of its part of the vocabulary."""
    w_VD = shard.gather(w_VD, "VD", "D")
    if not (parts := shard.axes("V", "VD")):
        return w_VD[tokens_BL]
    row_BL = tokens_BL - shard.part("V", "VD") * w_VD.shape[0]
    is_here_BL = (row_BL >= 0) & (row_BL < w_VD.shape[0])
    return shard.sum(jnp.where(is_here_BL[..., None], w_VD[jnp.where(is_here_BL, row_BL, 0)], 0), parts)


def local_layers(config: Config) -> np.ndarray | None:
    """Which layers have the window, bool [N]; None where they are all alike."""
    window = config.design.attention.window
    if window is None or window.layers is None:
        return None
    return np.isin(np.arange(config.num_layers), window.layers)
