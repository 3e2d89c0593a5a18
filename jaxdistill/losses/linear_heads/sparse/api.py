"""`linear_sparse` and `linear_picks`: any loss of the log-normaliser and the logits at a few ids, fused with the head.

Cross-entropy, z-loss, top-K with any tail, ghost tokens, random-sampled KD and sparse reverse divergences are all such
functions, so the op knows no loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.sharding import LOCAL, Sharding
from jaxdistill.losses.linear_heads.sparse import chunked, reference, tiled
from jaxdistill.losses.linear_heads.sparse.kernels import Kernels, choose
from jaxdistill.losses.linear_heads.stream import streamed_sum
from jaxdistill.losses.targets import NO_ID
from jaxdistill.losses.vocabulary import Vocabulary

Mode = Literal["forward", "recompute"]


def linear_picks(
    head: Head,
    id_BLS: Array,
    *,
    temperature: float = 1.0,
    implementation: Any = None,
    sharding: Sharding = LOCAL,
) -> tuple[Array, Array]:
    """The log-normaliser of z / temperature, fp32 [B, L], and the logits z at the ids, fp32 [B, L, S].

    Differentiable in `head` with a cotangent for every token: the primitive for losses that are not a plain sum. It
    keeps no logits and forms them again for the gradient (four matmul passes; `linear_sparse` needs three).

    Args:
      head: what makes the logits.
      id_BLS: int32; an id that the vocabulary does not have, such as NO_ID, gives z = 0 and takes no gradient.
      temperature: of the normaliser.
      implementation: None for the best on this platform; "chunked" (XLA), "pallas_tpu", "pallas_mgpu" (forward only,
        its gradient is XLA's) or "reference".
      sharding: how tokens and vocabulary lie on the devices.
    """
    _check(id_BLS, head)
    if implementation == "reference":
        return reference.linear_picks(head, id_BLS, temperature)
    return tiled.linear_picks(choose(implementation, "recompute"), sharding, temperature, head, id_BLS)


def linear_sparse(
    function: Callable,
    head: Head,
    id_BLS: Array,
    inputs: Any,
    *,
    temperature: float = 1.0,
    mode: Mode = "forward",
    implementation: Any = None,
    positions: int | None = None,
    sharding: Sharding = LOCAL,
) -> tuple[Array, dict[str, Array]]:
    """sum_t function(lse_t, z_t at its ids, inputs_t), never holding all logits.

    Args:
      function: (lse_BL, z_BLS, inputs) -> (loss_BL, values by name), in plain JAX on [B, L, S]. Token weights belong
        in it; it reads arrays from `inputs` alone.
      head: what makes the logits.
      id_BLS: int32; an id that the vocabulary does not have, such as NO_ID, gives z = 0 and takes no gradient.
      inputs: a tree of arrays; those whose letters begin with BL are cut into chunks with the tokens.
      temperature: lse_BL is that of z / temperature; z_BLS are not divided.
      mode: "forward" forms the gradient with the value (three matmul passes, the floor); "recompute" keeps no logits
        and forms them again (four passes, least memory).
      implementation: None for the best on this platform; "chunked" (XLA), "pallas_tpu", in mode "recompute" also
        "pallas_mgpu", or "reference". An instance of one of `kernels` says its block sizes too.
      positions: positions of each sequence in a chunk of mode "forward".
      sharding: how tokens and vocabulary lie on the devices.

    Returns:
      total: fp32 scalar, differentiable in `head`.
      values: what `function` returned beside the loss, fp32 [B, L] each.

    Raises InputError for ids that are not integers [B, L, S], or a mode or implementation that does not exist.
    """
    _check(id_BLS, head)
    known(mode, ("forward", "recompute"))
    if implementation == "reference":
        return reference.linear_sparse(function, head, id_BLS, inputs, temperature)
    if mode == "recompute":
        how = {"temperature": temperature, "implementation": implementation, "sharding": sharding}
        loss_BL, values = function(*linear_picks(head, id_BLS, **how), inputs)
        return jnp.sum(loss_BL), values
    inputs = {"inputs": inputs, "id_BLS": id_BLS, "exists_BL": jnp.ones(id_BLS.shape[:2], jnp.float32)}
    on_chunk = OnChunk(function, temperature, choose(implementation, mode))
    return streamed_sum(on_chunk, head, inputs, positions=positions, sharding=sharding)


@dataclasses.dataclass(frozen=True)
class OnChunk:
    """A function of lse and picks as a function of a chunk of logits, with its gradient."""

    function: Callable
    temperature: float
    kernels: Kernels

    def __call__(self, z_BLV: Array, inputs: Any, vocabulary: Vocabulary, with_gradient: bool):
        def function(lse_RBL, z_BLS):
            loss_BL, values = self.function(lse_RBL[0], z_BLS, inputs["inputs"])
            # the positions that fill up the last chunk hold zeros, which need not cost zero
            return jnp.where(inputs["exists_BL"] > 0, loss_BL, 0), values

        return chunked.on_logits(
            function, (self.temperature,), z_BLV, inputs["id_BLS"], vocabulary, with_gradient, kernels=self.kernels
        )


def known(choice: str | None, choices: tuple[str, ...]) -> None:
    if choice not in (None, *choices):
        raise InputError(f"linear_heads knows no {choice!r} here; there are {', '.join(map(repr, choices))}")


def check_weights(weight_BL: Array, head: Head) -> None:
    """Raise InputError where the weights are not fp32 [B, L]: a narrower sum would lose tokens."""
    if weight_BL.shape != head.h_BLD.shape[:2] or weight_BL.dtype != jnp.float32:
        raise InputError(
            f"weights are {weight_BL.dtype}{list(weight_BL.shape)}; a head of {list(head.h_BLD.shape)} hidden states "
            f"needs float32{list(head.h_BLD.shape[:2])}"
        )


def _check(id_BLS: Array, head: Head) -> None:
    if id_BLS.ndim != 3 or id_BLS.shape[:2] != head.h_BLD.shape[:2] or not jnp.issubdtype(id_BLS.dtype, jnp.integer):
        raise InputError(
            f"ids are {id_BLS.dtype}{list(id_BLS.shape)}; a head of {list(head.h_BLD.shape)} hidden states needs "
            f"integers [{head.h_BLD.shape[0]}, {head.h_BLD.shape[1]}, S]"
        )
    if isinstance(id_BLS, Tracer):
        return
    ids = np.asarray(id_BLS)
    outside = ids[(ids < 0) | ((ids >= head.vocab_size) & (ids != NO_ID))]
    if outside.size:
        raise InputError(
            f"id {outside[0]} is outside the vocabulary of {head.vocab_size}; an entry without an id is NO_ID"
        )
