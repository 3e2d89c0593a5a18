"""A teacher with another tokenizer, at the places where it has read what the student has.

    Dense           its distribution over the ids of the student that stand for its own (MinED), where a chunk is one
                    token on both sides: the signal "paired"; "unpaired" are the other tokens
    Further.states  its hidden states at the ends of chunks

What it says of whole chunks is in `across`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill import align
from jaxdistill.across import Chunking, Marks, says
from jaxdistill.head import MASKED, Head
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.losses.targets import Dense, Further, Labels, Target


def hear(
    head: Head,
    states: dict[int, Array],
    batch: Any,
    *,
    chunking: Chunking,
    teacher: Marks,
    student: Marks,
    sharding: Sharding = Sharding(),
) -> tuple[Target, Further]:
    """All that a teacher says of a batch; what no term looks at, the compiler leaves out.

    Args:
      head, states: the teacher's, of the tokens `batch.beside.batch`; the states by layer.
      batch: the student's, with `beside`.
      chunking, teacher, student, sharding: as `across.says` takes them. Where `student.match_V` is, the target is the
        distribution of the teacher in the student's vocabulary, else the label.
    """
    own = batch.beside.batch
    chunks = align.scored(batch.beside.chunks, own.weight_BL > 0, batch.weight_BL > 0)
    paired_BL, end_BL = align.begins(chunks, single=True), align.ends(chunks)
    signals = {"paired": jnp.float32(paired_BL >= 0), "unpaired": jnp.float32(paired_BL < 0)}
    further = Further(
        states={layer: align.states_at(h_BLD, end_BL) for layer, h_BLD in states.items()},
        is_state_BL=end_BL >= 0,
        chunks=says(head, batch, chunking, teacher, student, sharding),
        signals=signals,
    )
    if student.match_V is None:
        return Labels(batch.label_BL), further
    there = dataclasses.replace(head, h_BLD=align.states_at(head.h_BLD, paired_BL))
    return Dense(batch.label_BL, in_other_ids(there, student.match_V)), further


def in_other_ids(head: Head, match_V: Any) -> Head:
    """A head whose id v has the logit of id match_V[v] of this one, and none where that is negative.

    Where several ids stand for one, each has its logit: the softmax, and with it the mass, is over the new ids.
    """
    match_V = jnp.asarray(match_V)
    has_V, row_V = match_V >= 0, jnp.maximum(match_V, 0)
    bias_V = 0.0 if head.bias_V is None else head.bias_V[row_V]
    return dataclasses.replace(
        head,
        w_VD=jnp.where(has_V[:, None], head.w_VD[row_V], 0),
        bias_V=jnp.where(has_V, bias_V, MASKED).astype(jnp.float32),
        vocab_size=len(match_V),
    )
