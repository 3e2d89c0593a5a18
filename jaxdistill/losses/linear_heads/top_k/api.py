"""The public function: a teacher's K most probable tokens, from its Head."""

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.sharding import LOCAL, Sharding
from jaxdistill.losses.linear_heads.sparse.api import known
from jaxdistill.losses.linear_heads.top_k import chunked, reference
from jaxdistill.losses.linear_heads.top_k.reference import Top


def linear_top_k(
    head: Head, k: int, *, implementation: str | None = None, positions: int | None = None, sharding: Sharding = LOCAL
) -> Top:
    """The K most probable tokens of every position, exactly, with their log-probabilities and the log-normaliser.

    Ids and their order are those of `jax.lax.top_k` over all logits, ties included; padded rows never appear. A target
    is made before the gradient is taken: nothing here is meant to be differentiated.

    Args:
      head: the teacher's hidden states [B, L, D] and output embedding.
      k: how many, from 1 to the vocabulary's size.
      implementation: "chunked" (default) or "reference".
      positions: positions of each sequence in a chunk; None takes `default_positions` for the sequences on a device.
      sharding: how tokens and vocabulary lie on the devices.

    Returns:
      (id_BLS, logp_BLS, lse_BL): int32, fp32 and fp32, with S = k and the most probable first.

    Raises:
      InputError: k out of range, or an implementation that does not exist.
    """
    known(implementation, ("chunked", "reference"))
    if not 1 <= k <= head.vocab_size:
        raise InputError(f"k is {k}; it must be between 1 and the vocabulary's size, {head.vocab_size}")
    if implementation == "reference":
        return reference.top_k(head, k)
    return chunked.top_k(head, k, positions=positions, sharding=sharding)
