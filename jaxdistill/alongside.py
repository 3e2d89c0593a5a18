"""A teacher with another tokenizer, at the places where it has read what the student has.

    Dense           its distribution over the ids of the student that stand for its own (MinED), where a chunk is one
                    token on both sides: the signal "paired"; "unpaired" are the other tokens
    Further.states  its hidden states at the ends of chunks
    Further.beside  the teacher itself, whose distributions over its own ids `compare` holds the student's against

What it says of whole chunks is in `across`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill import align
from jaxdistill.across import Chunking, Marks, says
from jaxdistill.errors import InputError
from jaxdistill.head import MASKED, Head
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.linear_heads import Sharding, stream, token_values
from jaxdistill.losses.paired import PairedLoss
from jaxdistill.losses.targets import Beside, Dense, Further, Labels, Target


def hear(
    head: Head,
    states: dict[int, Array],
    embed_VD: Array,
    batch: Any,
    *,
    chunking: Chunking,
    teacher: Marks,
    student: Marks,
    sharding: Sharding = Sharding(),
) -> tuple[Target, Further]:
    """All that a teacher says of a batch; what no term looks at, the compiler leaves out.

    Args:
      head, states, embed_VD: the teacher's, of the tokens `batch.beside.batch`; the states by layer.
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
        beside=Beside(
            head,
            both(embed_VD, own),
            own.label_BL,
            own.weight_BL,
            _rest(head, own.label_BL, own.weight_BL, chunks.teacher_BL, chunks.is_real_BC.shape[1], sharding, {}),
            chunks,
        ),
        signals=signals,
    )
    if student.match_V is None:
        return Labels(batch.label_BL), further
    there = dataclasses.replace(head, h_BLD=align.states_at(head.h_BLD, paired_BL))
    return Dense(batch.label_BL, in_other_ids(there, student.match_V)), further


def both(embed_VD: Array, batch: Any) -> Array:
    """The embeddings of inputs and labels, [B, L, 2, D]."""
    return jnp.stack([embed_VD[batch.tokens_BL], embed_VD[batch.label_BL]], axis=2)


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


def compare(
    losses: Mapping[str, PairedLoss],
    head: Head,
    beside: Beside | None,
    label_BL: Array,
    weight_BL: Array,
    *,
    marks: Marks | None,
    sharding: Sharding = Sharding(),
    **streaming: Any,
) -> dict[str, Array]:
    """{name: fp32 [B, L]}: what each place costs, 0 where the teacher has none; differentiable in `head`.

    `marks` are of the student's ids. Logits exist for the positions of a chunk of the stream, of both models, and are
    formed again for the gradient.
    Raises InputError where there is no teacher of another tokenizer, or nothing that tells which ids spell the same.
    """
    if not losses:
        return {}
    name = next(iter(losses))
    if beside is None or marks is None:
        raise InputError(f"{name} compares two vocabularies: set experiment.teacher to Across")
    if marks.match_V is None and any(loss.needs_match for loss in losses.values()):
        raise InputError(f"{name} must know which ids spell the same: set match='same' in experiment.teacher")
    chunks, size = beside.chunks, beside.chunks.is_real_BC.shape[1]
    places = {"single": align.begins(chunks, single=True), "begin": align.begins(chunks)}
    places["row"] = _same_number(weight_BL, beside.weight_BL)
    rest_BL = _rest(head, label_BL, weight_BL, chunks.student_BL, size, sharding, streaming)
    values = {}
    for name, loss in losses.items():
        place_BL = places[loss.places]
        there = dataclasses.replace(beside.head, h_BLD=align.states_at(beside.head.h_BLD, place_BL))
        more = [jnp.zeros_like(weight_BL)] * 2
        if loss.merges:
            more = [rest_BL, align.states_at(beside.rest_BL[..., None], place_BL)[..., 0]]
        values[name] = _over_places(loss, (head, there), more, place_BL >= 0, marks.match_V, sharding, streaming)
    return values


def _same_number(weight_BL: Array, weight_there_BL: Any) -> Array:
    """The teacher's place of the same number in its row, where both count."""
    own, other = weight_BL.shape[1], weight_there_BL.shape[1]
    there_BL = jnp.pad(weight_there_BL, ((0, 0), (0, max(0, own - other))))[:, :own]
    return jnp.where((weight_BL > 0) & (there_BL > 0), jnp.arange(own), align.NO_PLACE)


def _rest(head: Head, label_BL, weight_BL, chunk_BL, size: int, sharding: Sharding, streaming: Any) -> Array:
    """The log-probability of the other tokens of each token's chunk, fp32 [B, L]; 0 where there is no chunk."""
    target = Labels(label_BL)
    surprise_BL = token_values({"ce": CrossEntropy()}, head, target, weight_BL, sharding=sharding, **streaming)["ce"]
    logp_BC = align.chunk_logp(-surprise_BL, chunk_BL, size)
    rest_BL = jnp.take_along_axis(logp_BC, jnp.maximum(chunk_BL, 0), axis=1) + surprise_BL
    return jnp.where(chunk_BL >= 0, rest_BL, 0)


def _over_places(loss: PairedLoss, heads, more, counts_BL, match_V, sharding: Sharding, streaming: Any) -> Array:
    """The loss of every place that counts, the logits of a chunk of positions at a time."""
    B, length, width = heads[0].h_BLD.shape
    default = stream.default_positions(B // sharding.size(sharding.sequences), length, width)
    number = -(-length // (streaming.get("positions") or default))
    size = -(-length // number)
    inputs = {"own": heads[0], "other": heads[1], "more_BL": more[0], "more_other_BL": more[1], "counts_BL": counts_BL}
    inputs = stream.pad(inputs, number * size - length)

    @jax.checkpoint
    def block(chunk):
        here = stream.take(inputs, chunk, size)
        log_q_BLV, log_p_BLV = (
            jax.nn.log_softmax(sharding.whole(here[side].logits()))[..., : here[side].vocab_size]
            + here[more][..., None]
            for side, more in (("own", "more_BL"), ("other", "more_other_BL"))
        )
        return jnp.where(here["counts_BL"], loss(log_q_BLV, log_p_BLV, match_V), 0)

    return stream.join(jax.lax.map(block, jnp.arange(number)))[:, :length]
