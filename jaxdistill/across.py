"""A teacher and a student with two tokenizers on one text: what each says of its chunks (ALM, arXiv 2503.20083).

    Chunked  = says(teacher's head, batch)          outside the gradient
    value_BL = answers(student's head, Chunked)     one number a chunk, at its last token

Labels are what the chunks are made of: log p(label l) comes from the states at input l, and what follows label l, be it
a boundary or not, from those at input l + 1, which is this label.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill import align
from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.boundary import BoundaryMass, Bounded
from jaxdistill.losses.chunks import ChunkDivergence
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.linear_heads import Sharding, token_values
from jaxdistill.losses.targets import Chunked


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How the texts of two tokenizers are compared.

    Attributes:
      at: where a chunk may end: "bytes", wherever a token ends on both sides, or "spaces", only before a new word.
      debias: what is corrected of a chunk's likelihood, as `align.likelihood` has it: "none", "outcome" or "both".
      gamma: chunks are joined until the teacher gives a boundary after them more than this; 0 joins none.
    """

    at: Literal["bytes", "spaces"] = "bytes"
    debias: align.Debias = "outcome"
    gamma: float = 0.1

    def __post_init__(self):
        if self.at not in ("bytes", "spaces"):
            raise InputError(f"at is {self.at!r}; chunks can end at 'bytes' or at 'spaces'")
        if self.debias not in ("none", "outcome", "both"):
            raise InputError(f"debias is {self.debias!r}; it must be 'none', 'outcome' or 'both'")
        if not self.gamma >= 0:
            raise InputError(f"gamma is {self.gamma}; it is a probability, at least 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Marks:
    """What the ids of a tokenizer are.

    Attributes:
      is_boundary_V: bool, those that a new word begins with.
      is_special_V: bool, those that are no text.
      match_V: int32, of a student, the teacher's id that stands for each; negative where none does. None: not asked.
    """

    is_boundary_V: Any
    is_special_V: Any
    match_V: Any = None

    @classmethod
    def of(cls, spelling: align.Spelling, match_V: Any = None) -> "Marks":
        return cls(spelling.is_boundary(), spelling.is_special(), match_V)


def says(
    head: Head, batch: Any, chunking: Chunking, teacher: Marks, student: Marks, sharding: Sharding = Sharding()
) -> Chunked:
    """The chunks of a batch as its teacher sees them.

    Args:
      head: the teacher's, of the tokens `batch.beside.batch`.
      batch: the student's, with `beside`.
      chunking: how they are compared.
      teacher, student: what their ids are.
      sharding: of the teacher's head.
    """
    own, chunks = batch.beside.batch, batch.beside.chunks
    logp_BL, boundary_BL = token_logp(head, own.label_BL, own.weight_BL, teacher, sharding=sharding)
    corrected = chunking.debias != "none"
    chunks = align.scored(
        chunks,
        _is_scored(own.label_BL, own.weight_BL, teacher, corrected),
        _is_scored(batch.label_BL, batch.weight_BL, student, corrected),
    )
    if chunking.gamma > 0:
        chunks = align.merge(chunks, boundary_BL, chunking.gamma)
    if chunking.debias == "both":
        chunks = _followed(chunks)
    size = chunks.is_real_BC.shape[1]
    logp_BC = align.chunk_logp(logp_BL, chunks.teacher_BL, size, boundary_BL, chunking.debias)
    return Chunked(logp_BC, chunks.is_real_BC, chunks.student_BL, chunking.debias)


def answers(
    divergences: Mapping[str, ChunkDivergence],
    head: Head,
    target: Chunked | None,
    label_BL: Array,
    weight_BL: Array,
    *,
    marks: Marks | None,
    sharding: Sharding = Sharding(),
    **streaming: Any,
) -> dict[str, Array]:
    """{name: fp32 [B, L]}: what each chunk costs at its last token, and 0 elsewhere; differentiable in `head`.

    `marks` are of the student's ids. Raises InputError where no teacher speaks of chunks.
    """
    if not divergences:
        return {}
    if target is None or marks is None:
        raise InputError(
            f"{next(iter(divergences))} compares chunks, of which no teacher speaks: set experiment.teacher to Across, "
            "or to Cached with a Chunking"
        )
    size = target.is_real_BC.shape[1]
    logp_BL, boundary_BL = token_logp(head, label_BL, weight_BL, marks, sharding=sharding, **streaming)
    logp_BC = align.chunk_logp(logp_BL, target.chunk_BL, size, boundary_BL, target.debias)
    last_BC = align.last_token(target.chunk_BL, size)
    return {
        name: _place(jnp.where(target.is_real_BC, divergence(target.logp_BC, logp_BC), 0), last_BC, label_BL.shape[1])
        for name, divergence in divergences.items()
    }


def token_logp(
    head: Head,
    label_BL: Array,
    weight_BL: Array,
    marks: Marks,
    **how: Any,
) -> tuple[Array, Array]:
    """(log p(label), log p(a boundary follows it)), fp32 [B, L] each; `how` is of `token_values`.

    The first is 0 where the weight is, and the second at the last label, unless it is special.
    """
    padding = head.w_VD.shape[0] - len(marks.is_boundary_V)
    target = Bounded(label_BL, jnp.pad(jnp.asarray(marks.is_boundary_V), (0, padding)))
    values = token_values({"surprise": CrossEntropy(), "boundary": BoundaryMass()}, head, target, weight_BL, **how)
    after_BL = jnp.pad(values["boundary"][:, 1:], ((0, 0), (0, 1)))
    return -values["surprise"], jnp.where(jnp.asarray(marks.is_special_V)[label_BL], 0.0, after_BL)


def _is_scored(label_BL: Array, weight_BL: Array, marks: Marks, corrected: bool) -> Array:
    """bool [B, L]: labels of which all is known; of the last one of a row not what follows it."""
    is_last_L = jnp.arange(label_BL.shape[1]) == label_BL.shape[1] - 1
    lacks_BL = corrected & is_last_L & ~jnp.asarray(marks.is_special_V)[label_BL]
    return (weight_BL > 0) & ~lacks_BL


def _followed(chunks: align.Chunks) -> align.Chunks:
    """Only chunks with another before them on both sides: what came before a row, nobody has said."""
    size = chunks.is_real_BC.shape[1]
    has_both_BC = (align.last_token(chunks.teacher_BL, size) >= 0) & (align.last_token(chunks.student_BL, size) >= 0)
    before_BC = jnp.pad(has_both_BC[:, :-1], ((0, 0), (1, 0)))
    return dataclasses.replace(chunks, is_real_BC=chunks.is_real_BC & before_BC)


def _place(value_BC: Array, last_BC: Array, length: int) -> Array:
    """[B, C] -> [B, L]: every chunk's value at its last token."""
    put = lambda value_C, last_C: jnp.zeros(length).at[jnp.where(last_C < 0, length, last_C)].add(value_C, mode="drop")  # noqa: E731
    return jax.vmap(put)(value_BC, last_BC)
