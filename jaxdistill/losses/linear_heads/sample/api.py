"""The public function: weighted random tokens of a teacher, from its Head."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.sample import chunked, reference
from jaxdistill.losses.linear_heads.sample.reference import Sample
from jaxdistill.losses.linear_heads.sharding import LOCAL, Sharding
from jaxdistill.losses.linear_heads.sparse.api import known

MOST_ROUNDS = 2**15  # beyond it, the steps of systematic sampling would not fit 31 bits


def linear_sample(
    head: Head,
    rounds: int,
    key: Array,
    *,
    index_BL: Array,
    sampler: str = "multinomial",
    exponent: float = 1.0,
    implementation: str | None = None,
    positions: int | None = None,
    sharding: Sharding = LOCAL,
) -> Sample:
    """`rounds` tokens of every position drawn from q ~ p^exponent, with weights whose expectation is p.

    The target of random sampling knowledge distillation (arXiv 2503.16870). The variance of a weight is
    (p^2 / q - p^2) / rounds with the multinomial sampler, over all ids together least at exponent 1, and lower with the
    systematic one. Draws depend on `key`, a token's index and its logits alone: not on batch, chunk or device. (On a
    logit rounded differently, as by a matmul of another shape, a draw within that rounding of a neighbour may change.)
    A position whose logits are not finite gets NaN weights.

    Args:
      head: the teacher's hidden states [B, L, D] and output embedding.
      rounds: N, draws a token, from 1 to MOST_ROUNDS; also the number S of entries.
      key: a `jax.random.key` of threefry2x32, the default generator.
      index_BL: int32 or uint32, the token's number in the data, by which the key is told apart. Where 32 bits do not
        reach, fold the higher ones into `key`.
      sampler: "multinomial" (independent draws, as published) or "systematic" (equal steps from one random offset: each
        id is drawn floor or ceil of N q times).
      exponent: above 0; what the paper calls the temperature of the proposal.
      implementation: "chunked" (default) or "reference".
      positions: positions of each sequence in a chunk; None takes `default_positions` for the sequences on a device.
      sharding: how tokens and vocabulary lie on the devices.

    Returns:
      (id_BLS, weight_BLS, count_BLS, lse_BL), ids ascending and once each; see `Sample`.

    Raises:
      InputError: a sampler or an implementation that does not exist, or a number out of range.
    """
    known(implementation, ("chunked", "reference"))
    check_tokens(head, key, index_BL)
    _check(rounds, sampler, exponent)
    if implementation == "reference":
        return reference.sample(head, rounds, key, index_BL, sampler, exponent)
    return chunked.sample(head, rounds, key, index_BL, sampler, exponent, positions=positions, sharding=sharding)


def check_tokens(head: Head, key: Array, index_BL: Array) -> None:
    """Refuses a key or an index from which the tokens of `head` could not draw each on its own."""
    if (generator := str(jax.random.key_impl(key))) != "threefry2x32":
        raise InputError(
            f"the key's generator is {generator}, which gives a token other draws in another batch: make it with "
            "jax.random.key(seed, impl='threefry2x32')"
        )
    tokens = head.h_BLD.shape[:2]
    if index_BL.shape != tokens or not jnp.issubdtype(index_BL.dtype, jnp.integer):
        raise InputError(
            f"index_BL is {index_BL.dtype} {index_BL.shape}; it must hold an integer for each of the {tokens} tokens"
        )


def _check(rounds: int, sampler: str, exponent: float) -> None:
    if sampler not in ("multinomial", "systematic"):
        raise InputError(f"there is no sampler {sampler!r}; there are 'multinomial' and 'systematic'")
    if not 1 <= rounds <= MOST_ROUNDS:
        raise InputError(f"rounds is {rounds}; it must be between 1 and {MOST_ROUNDS}")
    if not exponent > 0:
        raise InputError(f"exponent is {exponent}; it must be above 0, so that probable tokens are drawn more often")
