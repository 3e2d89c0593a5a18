"""What a chunk is worth to a model: its log-probability, from those of its tokens (ALM, arXiv 2503.20083, section 3).

Ending a chunk after the token "_Wor" says more than its bytes do: that "_World" was not meant. Two corrections take
that out of the comparison of two tokenizers. With S_c the log-probability that a boundary (a space or a special token)
follows chunk c, and L_c the sum over its tokens:

    none      L_c
    outcome   L_c + S_c              the chunk and then a boundary (ALM, section 3.1; Pimentel & Meister 2024)
    both      L_c + S_c - S_(c-1)    the same, given that a boundary followed the chunk before

The last is the same number for every tokenizer of one distribution over texts, if its tokens hold spaces in front alone
and if chunks end at spaces: `align(..., at="spaces")`. After a special token a boundary is certain, S = 0, and so it is
before the first chunk of a row.

Of token l, log p(token l | those before it) comes from the logits at l - 1, and S_l from those at l.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.align.chunks import NO_CHUNK, Chunks
from jaxdistill.errors import InputError

Numbers = Array | np.ndarray
Debias = Literal["none", "outcome", "both"]


def boundary_logp(z_BLV: Array, tokens_BL: Array, is_boundary_V: Numbers, is_special_V: Numbers) -> Array:
    """S_l, the log-probability that a boundary follows token l, fp32 [B, L]; 0 where token l is special.

    `z_BLV` are the logits that follow the tokens [B, L]. The two masks are `Spelling.is_boundary` and `is_special`,
    bool [V]; logits may have further columns, of a padded vocabulary, which are no boundaries.
    """
    z_BLV = z_BLV.astype(jnp.float32)
    is_boundary_V = jnp.pad(is_boundary_V, (0, z_BLV.shape[-1] - len(is_boundary_V)))
    boundary_BL = jax.nn.logsumexp(jnp.where(is_boundary_V, z_BLV, -jnp.inf), axis=-1)
    follows_BL = boundary_BL - jax.nn.logsumexp(z_BLV, axis=-1)
    return jnp.where(jnp.asarray(is_special_V)[tokens_BL], 0.0, follows_BL)


def chunk_logp(
    logp_BL: Array, chunk_BL: Numbers, chunks: int, boundary_BL: Array | None = None, debias: Debias = "none"
) -> Array:
    """The log-probability of every chunk, fp32 [B, C]; 0 for those without tokens.

    Differentiable in `logp_BL` and `boundary_BL`, [B, L]: log p(token l | those before it), and `boundary_logp`.
    `chunk_BL` are the chunks of the same tokens, int32, and `chunks` is C. What the module says of `debias` holds.
    Raises InputError where a correction lacks `boundary_BL`.
    """
    logp_BC = _sum(logp_BL, chunk_BL, chunks)
    if debias == "none":
        return logp_BC
    if debias not in ("outcome", "both"):
        raise InputError(f"debias is {debias!r}; it must be 'none', 'outcome' or 'both'")
    if boundary_BL is None:
        raise InputError(f"debias={debias!r} needs to know where boundaries follow: give boundary_logp of the logits")
    boundary_BC = _at_end(boundary_BL, chunk_BL, chunks)
    logp_BC += boundary_BC
    if debias == "both":
        before_BC = jnp.pad(boundary_BC[:, :-1], ((0, 0), (1, 0)))
        logp_BC -= jnp.where(last_token(chunk_BL, chunks) >= 0, before_BC, 0.0)
    return logp_BC


def last_token(chunk_BL: Numbers, chunks: int) -> Array:
    """The place of each chunk's last token, int32 [B, C]; negative for chunks without tokens."""
    place_BL = jnp.broadcast_to(jnp.arange(chunk_BL.shape[1], dtype=jnp.int32), chunk_BL.shape)
    last = lambda place_L, chunk_L: jax.ops.segment_max(place_L, chunk_L, num_segments=chunks)  # noqa: E731
    return jnp.maximum(jax.vmap(last)(place_BL, jnp.asarray(chunk_BL)), -1)


def scored(chunks: Chunks, is_scored_teacher_BL: Numbers, is_scored_student_BL: Numbers) -> Chunks:
    """The chunks of which every token has a log-probability on both sides: bool [B, L] of the tokens that have one.

    The first token of a row has none, and neither has one that opens another document than its context.
    """
    size = chunks.is_real_BC.shape[1]
    missing_BC = _sum(~jnp.asarray(is_scored_teacher_BL), chunks.teacher_BL, size)
    missing_BC += _sum(~jnp.asarray(is_scored_student_BL), chunks.student_BL, size)
    return dataclasses.replace(chunks, is_real_BC=chunks.is_real_BC & (missing_BC == 0))


def merge(chunks: Chunks, boundary_teacher_BL: Array, gamma: float) -> Chunks:
    """Chunks joined until the teacher gives a boundary after them more than `gamma`: P_T = exp(S^T_c) > gamma.

    The group of a chunk is how many chunks before it end so; groups are chunks again, fewer of them. One counts if all
    of its chunks do. At 0 nothing is joined, from 1 on everything is; ALM uses 0.1.
    Raises InputError for a negative gamma.
    """
    if not gamma >= 0:
        raise InputError(f"gamma is {gamma}; it is a probability, at least 0")
    size = chunks.is_real_BC.shape[1]
    has_tokens_BC = last_token(chunks.teacher_BL, size) >= 0
    boundary_BC = _at_end(boundary_teacher_BL, chunks.teacher_BL, size)
    may_end_BC = boundary_BC > (math.log(gamma) if gamma > 0 else -math.inf)
    group_BC = jnp.cumsum(may_end_BC, axis=1, dtype=jnp.int32) - may_end_BC
    group_BC = jnp.where(has_tokens_BC, group_BC, NO_CHUNK)
    is_real_BC = last_token(group_BC, size) >= 0
    is_real_BC &= _sum(~jnp.asarray(chunks.is_real_BC), group_BC, size) == 0
    return Chunks(_look_up(group_BC, chunks.teacher_BL), _look_up(group_BC, chunks.student_BL), is_real_BC)


def _sum(x_BL: Numbers, chunk_BL: Numbers, chunks: int) -> Array:
    """The sums over the tokens of every chunk, fp32 [B, C]; those of no chunk are left out."""
    add = lambda x_L, chunk_L: jax.ops.segment_sum(x_L, chunk_L, num_segments=chunks)  # noqa: E731
    return jax.vmap(add)(jnp.asarray(x_BL, jnp.float32), jnp.asarray(chunk_BL))


def _at_end(x_BL: Array, chunk_BL: Numbers, chunks: int) -> Array:
    """The value at the last token of every chunk, [B, C]; 0 for chunks without tokens."""
    last_BC = last_token(chunk_BL, chunks)
    return jnp.where(last_BC >= 0, jnp.take_along_axis(x_BL, jnp.maximum(last_BC, 0), axis=1), 0.0)


def _look_up(group_BC: Array, chunk_BL: Numbers) -> Array:
    """The group of every token's chunk, int32 [B, L]."""
    chunk_BL = jnp.asarray(chunk_BL)
    group_BL = jnp.take_along_axis(group_BC, jnp.maximum(chunk_BL, 0), axis=1)
    return jnp.where(chunk_BL >= 0, group_BL, NO_CHUNK)
