"""Teachers: what turns a batch into a Target, outside the gradient.

The teacher is data. Its parameters are an input of the compiled step, never a variable of it, so no gradient can reach
them and none has to be stopped.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.linear_heads import Sharding, linear_sample, linear_top_k
from jaxdistill.losses.targets import Dense, Hidden, Labels, Sampled, Target, TopK

TEACHER = "teacher"  # its name among the frozen models of a run; references have names of their own


@dataclasses.dataclass(frozen=True)
class Top:
    """Keep a teacher's k most probable tokens and the mass of the others."""

    k: int

    def __call__(self, target: Dense, key: Array, index_BL: Array, sharding: Sharding) -> TopK:
        top = linear_top_k(target.head, self.k, sharding=sharding)
        return TopK.of(target.label_BL, top.id_BLS, top.logp_BLS)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Keep `rounds` random tokens, whose weights are the teacher's distribution in expectation (RS-KD).

    Attributes:
      rounds: draws a token.
      sampler: "multinomial" as published, or "systematic" with less variance.
      exponent: of the proposal p^exponent.
    """

    rounds: int = 50
    sampler: Literal["multinomial", "systematic"] = "multinomial"
    exponent: float = 1.0

    def __call__(self, target: Dense, key: Array, index_BL: Array, sharding: Sharding) -> Sampled:
        drawn = linear_sample(
            target.head, self.rounds, key, index_BL=index_BL, sampler=self.sampler, exponent=self.exponent,
            sharding=sharding,
        )  # fmt: skip
        return Sampled(target.label_BL, drawn.id_BLS, drawn.weight_BLS)


@dataclasses.dataclass(frozen=True)
class Online:
    """A live teacher: its forward pass runs on every batch.

    Attributes:
      run: the Experiment that trains the teacher (a sweep trains it once for all students that name it), or the
        directory of a finished run.
      keep: what of its distribution becomes the target; None for all of it.
      references: further frozen models by name, for targets and weights that compare several: an Experiment or a
        directory each, as `run`.
    """

    run: Any
    keep: Top | Draws | None = None
    references: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if TEACHER in self.references:
            raise InputError(f"a reference cannot be called {TEACHER!r}: choose another name in teacher.references")
        if self.keep is not None and self.references:
            raise InputError("references compare whole distributions: leave teacher.keep away, or the references")

    @property
    def runs(self) -> dict[str, Any]:
        """All frozen models of the run by name, the teacher first."""
        return {TEACHER: self.run, **self.references}


def make_target(
    models: Mapping[str, Any],
    keep: Callable | None = None,
    sharding: Sharding = Sharding(),
    layers: Sequence[int] = (),
):
    """target(params by name, batch, key, index_BL) -> (Target, Hidden); with no model, what the data says.

    `index_BL` tells the tokens of a step apart, so that a random choice does not depend on how they are divided.
    `layers` are those of the teacher whose hidden states are kept.
    """

    def target(params: Mapping[str, Any], batch: Any, key: Array, index_BL: Array) -> tuple[Target, Hidden]:
        if not models:
            return Labels(batch.label_BL), Hidden({})
        heads, kept = {}, {}
        for name, model in models.items():
            inputs = params[name], batch.tokens_BL, batch.segment_BL, batch.position_BL
            h_BLD, states = model.hidden(*inputs, keep=layers if name == TEACHER else ())
            heads[name], kept = model.head(params[name], h_BLD), {**kept, **states}
        dense = Dense(batch.label_BL, heads.pop(TEACHER), heads)
        return dense if keep is None else keep(dense, key, index_BL, sharding), Hidden(kept)

    return target


def token_index(batch: Any) -> Array:
    """The number of every token of a batch, int32 [B, L]."""
    B, L = batch.label_BL.shape
    return jax.lax.broadcasted_iota("int32", (B, L), 0) * L + jax.lax.broadcasted_iota("int32", (B, L), 1)
