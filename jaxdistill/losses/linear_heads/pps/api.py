"""The public function: a fixed number of a teacher's tokens, drawn with probability proportional to size."""

from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.pps import chunked, reference
from jaxdistill.losses.linear_heads.pps.reference import Pps
from jaxdistill.losses.linear_heads.sample.api import MOST_ROUNDS, check_tokens
from jaxdistill.losses.linear_heads.sharding import LOCAL, Sharding
from jaxdistill.losses.linear_heads.sparse.api import known


def linear_pps(
    head: Head,
    size: int,
    key: Array,
    *,
    index_BL: Array,
    implementation: str | None = None,
    positions: int | None = None,
    sharding: Sharding = LOCAL,
) -> Pps:
    """`size` different tokens of every position, with weights that sum to one and whose expectation is p.

    Systematic sampling with probability proportional to size: an id is included with probability min(1, p / t), where
    the threshold t makes these sum to `size`, and weighs max(p, t). The variance of a weight is p max(t - p, 0); its
    sum over the ids is the least that an unbiased sample of as many entries can have (Cohen, Duffield, Kaplan, Lund and
    Thorup 2011, SIAM Journal on Computing 40, section 1). As with `linear_sample`, the ids depend on `key`, a token's
    index and its logits alone, and a position whose logits are not finite gets NaN weights.

    Args:
      head: the teacher's hidden states [B, L, D] and output embedding.
      size: S, entries a token, from 1 to MOST_ROUNDS and at most the vocabulary's size.
      key: a `jax.random.key` of threefry2x32, the default generator.
      index_BL: int32 or uint32, the token's number in the data, by which the key is told apart.
      implementation: "chunked" (default) or "reference".
      positions: positions of each sequence in a chunk; None takes `default_positions` for the sequences on a device.
      sharding: how tokens and vocabulary lie on the devices.

    Returns:
      (id_BLS, weight_BLS, lse_BL), ids ascending and once each; see `Pps`.

    Raises:
      InputError: an implementation that does not exist, or a number out of range.
    """
    known(implementation, ("chunked", "reference"))
    check_tokens(head, key, index_BL)
    most = min(MOST_ROUNDS, head.vocab_size)
    if not 1 <= size <= most:
        raise InputError(f"size is {size}; it must be between 1 and {most}, the vocabulary's size or {MOST_ROUNDS}")
    if implementation == "reference":
        return reference.pps(head, size, key, index_BL)
    return chunked.pps(head, size, key, index_BL, positions=positions, sharding=sharding)
