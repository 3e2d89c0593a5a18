"""From a teacher's head to the integers of a cache, a chunk of positions at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill import dims
from jaxdistill.cache.codec import Layout
from jaxdistill.cache.samplers import Sampler
from jaxdistill.cache.states import LastStates
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.losses.linear_heads.bins import map_chunks
from jaxdistill.losses.targets import Dense
from jaxdistill.losses.vocabulary import Vocabulary


def encode(
    head: Head, label_BL: Any, key: Array, index_BL: Any, keep: Sampler | LastStates, layout: Layout, sharding: Sharding
) -> dict[str, Array]:
    """What `layout.pack` makes of the sampled targets, and the scalars of `statistics`, by name.

    The sampler and the statistics each ask the head for a chunk's logits; the compiler finds that they are the same.

    Args:
      head: the teacher's, [B, L, D] and [V, D].
      label_BL: the tokens of the data.
      key: of threefry2x32.
      index_BL: uint32, the tokens' numbers in the data, on which, with the key, a random choice depends alone.
      keep, layout, sharding: what is kept, how it is stored, and how head and tokens lie on the devices.
    """

    def on_chunk(head: Head, inputs: dict[str, Array]) -> dict[str, Array]:
        target: Any = keep(Dense(inputs["label_BL"], head), key, inputs["index_BL"], sharding)
        uniform_BL = uniforms(jax.random.fold_in(key, 1), inputs["index_BL"])
        packed = layout.pack(target, uniform_BL)
        extra = {f"{name}_BL": getattr(target, f"{name}_BL") for name in layout.extra}
        return packed | extra | statistics(head, inputs["label_BL"], sharding)

    # What a device has of a sequence is a sequence to these ops, so that every device has a part of every chunk.
    sequences, parts = head.h_BLD.shape[0], sharding.size(sharding.positions)
    sharding = dataclasses.replace(sharding, sequences=sharding.tokens, positions=())
    folded = _folded((head, {"label_BL": label_BL, "index_BL": index_BL}), sequences * parts)
    return _folded(map_chunks(on_chunk, *folded, positions=None), sequences)


def _folded(tree: Any, sequences: int) -> Any:
    """Every per-token array with as many sequences."""

    def fold(path: Any, x: Any) -> Any:
        if not dims.per_token(path):
            return x
        return x.reshape(sequences, x.shape[0] * x.shape[1] // sequences, *x.shape[2:])

    return jax.tree_util.tree_map_with_path(fold, tree)


def uniforms(key: Array, index_BL: Array) -> Array:
    """One number in [0, 1) a token, fp32, by its index."""
    of_token: Callable[[Array], Array] = lambda index: jax.random.uniform(jax.random.fold_in(key, index))  # noqa: E731
    return jax.vmap(jax.vmap(of_token))(index_BL)


def statistics(head: Head, label_BL: Array, sharding: Sharding) -> dict[str, Array]:
    """-log p(label), -sum_v p_v log p_v and the log-normaliser of every token, in nats, fp32 [B, L] each."""

    def on_device(sharding: Sharding, vocabulary: Vocabulary, head: Head, inputs: dict[str, Array]) -> dict[str, Array]:
        z_BLV = head.logits(vocabulary.first)
        lse_BL = vocabulary.lse(z_BLV)
        log_p_BLV = z_BLV - lse_BL[..., None]
        label_BL = vocabulary.pick(z_BLV, inputs["label_BL"][..., None], few=0)[..., 0]
        # As a dot: for sum(exp(x) * x), XLA of jax 0.10 writes a loop for a batch of one that takes 20 times as long.
        negentropy_BL = jnp.einsum("BLV,BLV->BL", jnp.exp(log_p_BLV), log_p_BLV, precision="highest")
        return {
            "teacher_cross_entropy_BL": lse_BL - label_BL,
            "teacher_entropy_BL": -vocabulary.add(negentropy_BL),
            "teacher_lse_BL": lse_BL,
        }

    return sharding.run(on_device, head, {"label_BL": label_BL})
