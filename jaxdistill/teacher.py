"""Teachers: what turns a batch into a Target, outside the gradient.

The teacher is data. Its parameters are an input of the compiled step, never a variable of it, so no gradient can reach
them and none has to be stopped.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from jax import Array

from jaxdistill.across import Chunking
from jaxdistill.cache.recipe import Recipe, is_cache
from jaxdistill.cache.samplers import Draws, Sampler, Top
from jaxdistill.cache.states import LastStates, States
from jaxdistill.errors import InputError
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.losses.targets import Chunked, Dense, Further, Labels, Target
from jaxdistill.parallel.placement import Disjoint
from jaxdistill.parallel.rules import Table

__all__ = ["Across", "Cached", "Disjoint", "Draws", "Online", "Top", "make_target", "token_index"]

TEACHER = "teacher"  # its name among the frozen models of a run; references have names of their own
BASE = "base"  # the parameters of the student that are not trained, among those of the frozen models
CACHE = "cache"  # the role of a directory of targets


@dataclasses.dataclass(frozen=True)
class Online:
    """A live teacher: its forward pass runs on every batch.

    Attributes:
      run: the Experiment that trains the teacher (a sweep trains it once for all students that name it), or the
        directory of a finished run.
      keep: what of its distribution becomes the target; None for all of it.
      references: further frozen models by name, for targets and weights that compare several: an Experiment or a
        directory each, as `run`.
      table: what each axis of the mesh splits of them, one of `parallel.rules.TABLES`; None for the student's.
      placement: None beside the student, on its devices; or Disjoint, on others, of which `keep` is all that crosses.
      quantised: "int8" for a teacher whose layers are int8 (`models.quantised`); references stay as they are.
    """

    run: Any
    keep: Sampler | None = None
    references: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    table: Table | None = dataclasses.field(default=None, metadata={"later": True})
    placement: Disjoint | None = dataclasses.field(default=None, metadata={"later": True})
    quantised: Literal["int8"] | None = dataclasses.field(default=None, metadata={"later": True})

    def __post_init__(self):
        _check_quantised(self.quantised)
        if taken := {TEACHER, BASE} & set(self.references):
            raise InputError(f"a reference cannot be called {min(taken)!r}: choose another name in teacher.references")
        if self.keep is not None and self.references:
            raise InputError("references compare whole distributions: leave teacher.keep away, or the references")
        if self.placement is not None and self.keep is None:
            raise InputError(
                "a whole distribution does not cross between devices: set teacher.keep, such as Draws(50), or place "
                "the teacher beside the student (teacher.placement=None)"
            )

    def sources(self, student: Any) -> dict[str, Any]:
        """What has to be run before this student, by role: all frozen models, the teacher first."""
        return {TEACHER: self.run, **self.references}

    def following(self, change: Callable[[Any], Any]) -> "Online":
        """The same with `change` applied to every Experiment it describes."""
        references = {name: change(source) for name, source in self.references.items()}
        return dataclasses.replace(self, run=change(self.run), references=references)


@dataclasses.dataclass(frozen=True)
class Across:
    """A live teacher with a tokenizer of its own, on the same text: what it says is compared chunk by chunk.

    Attributes:
      run: as `Online.run`.
      chunking: how the two sides are compared.
      length: tokens of the teacher in a window; None for as many as the text of the student's windows takes.
      match: which of the teacher's ids stands for each of the student's, for terms that compare distributions by name:
        "nearest", that of the least edit distance; "same", that which spells the same; None, which such terms refuse.
      table: as `Online.table`.
      placement: as `Online.placement`; what is said of chunks is small enough to cross.
      quantised: as `Online.quantised`.
    """

    run: Any
    chunking: Chunking = Chunking()
    length: int | None = None
    match: Literal["nearest", "same"] | None = dataclasses.field(default=None, metadata={"later": True})
    table: Table | None = dataclasses.field(default=None, metadata={"later": True})
    placement: Disjoint | None = dataclasses.field(default=None, metadata={"later": True})
    quantised: Literal["int8"] | None = dataclasses.field(default=None, metadata={"later": True})

    def __post_init__(self):
        _check_quantised(self.quantised)
        if self.match not in (None, "nearest", "same"):
            raise InputError(f"teacher.match is {self.match!r}; it must be 'nearest', 'same' or None")
        if self.match is not None and self.placement is not None:
            raise InputError(
                "teacher.match is for losses on whole distributions, which do not cross between devices: unset it, or "
                "place the teacher beside the student (teacher.placement=None)"
            )

    def sources(self, student: Any) -> dict[str, Any]:
        """What has to be run before this student, by role."""
        return {TEACHER: self.run}

    def following(self, change: Callable[[Any], Any]) -> "Across":
        """The same with `change` applied to the Experiment it describes."""
        return dataclasses.replace(self, run=change(self.run))


@dataclasses.dataclass(frozen=True)
class Cached:
    """A teacher that has spoken already: its targets are read from disk, and its weights are not needed.

    The cache is built once for all students that ask for the same one, by `jaxdistill cache build`, or by the run or
    sweep that needs it first.

    Attributes:
      run: the Experiment that trains the teacher, or the directory of a finished run or of a finished cache. With a
        cache, what it holds is fixed, and the fields that say how to build one are not read.
      keep: what is kept of the teacher's distribution; with `LastStates` all of it, for which a student also needs the
        teacher's output layer; with a `Chunking` what a teacher with another tokenizer says of chunks, as `Across`.
      windows: how many windows to keep, the first of the student's order; None for all. A student that sees less than
        an epoch does not need all: steps * batch are enough.
      seed: of the random entries.
      resolution: distance of two stored log-probabilities, in nats.
      first: of a cache of top-K targets, how many entries to use; None for all.
      table: as `Online.table`, when the cache is built.
    """

    run: Any
    keep: Sampler | LastStates | Chunking = Draws(50)
    windows: int | None = None
    seed: int = 0
    resolution: float = 1 / 64
    first: int | None = None
    table: Table | None = dataclasses.field(default=None, metadata={"later": True})

    def sources(self, student: Any) -> dict[str, Any]:
        """What has to be run before this student, by role: the cache, which in turn needs the teacher.

        `student` is an Experiment, whose data and devices the cache is for.
        """
        if isinstance(self.run, (str, Path)) and is_cache(Path(self.run)):
            return {CACHE: self.run}
        order = student.seed if self.windows is not None else 0
        recipe = Recipe(
            self.run,
            student.data,
            self.keep,
            self.windows,
            order,
            self.seed,
            self.resolution,
            student.dtype,
            student.mesh,
            student.teacher_table,
        )
        return {CACHE: recipe}

    def following(self, change: Callable[[Any], Any]) -> "Cached":
        """The same with `change` applied to the Experiment it describes."""
        return dataclasses.replace(self, run=change(self.run))


def _check_quantised(quantised: str | None) -> None:
    if quantised not in (None, "int8"):
        raise InputError(f"teacher.quantised is {quantised!r}; it is 'int8', or None for the compute dtype")


def make_target(
    models: Mapping[str, Any],
    keep: Callable | None = None,
    sharding: Sharding = Sharding(),
    layers: Sequence[int] = (),
    across: Callable | None = None,
):
    """target(params by name, batch, key, index_BL) -> (Target, Further): what the batch brings along, or what the
    models say, or, with no model, what the data says.

    `index_BL` tells the tokens of a step apart, so that a random choice does not depend on how they are divided.
    `layers` are those of the teacher whose hidden states are kept. `across(head, states, embed_VD, batch)`
    says the same of a teacher with a tokenizer of its own, which sees the tokens in `batch.beside`: `alongside.hear`.
    """

    def target(params: Mapping[str, Any], batch: Any, key: Array, index_BL: Array) -> tuple[Target, Further]:
        if isinstance(batch.target, States):
            return batch.target.dense(params[TEACHER]), Further()
        if isinstance(batch.target, Chunked):
            return Labels(batch.label_BL), Further(chunks=batch.target)
        if batch.target is not None:
            return batch.target, Further()
        if not models:
            return Labels(batch.label_BL), Further()
        if across is not None:
            model, own = models[TEACHER], batch.beside.batch
            inputs = params[TEACHER], own.tokens_BL, own.segment_BL, own.position_BL
            h_BLD, states = model.hidden(*inputs, keep=layers)
            return across(model.head(params[TEACHER], h_BLD), states, params[TEACHER]["embed_VD"], batch)
        heads, kept = {}, {}
        for name, model in models.items():
            inputs = params[name], batch.tokens_BL, batch.segment_BL, batch.position_BL
            h_BLD, states = model.hidden(*inputs, keep=layers if name == TEACHER else ())
            heads[name], kept = model.head(params[name], h_BLD), {**kept, **states}
        dense = Dense(batch.label_BL, heads.pop(TEACHER), heads)
        return dense if keep is None else keep(dense, key, index_BL, sharding), Further(kept)

    return target


def token_index(batch: Any) -> Array:
    """The number of every token of a batch, int32 [B, L]."""
    B, L = batch.label_BL.shape
    return jax.lax.broadcasted_iota("int32", (B, L), 0) * L + jax.lax.broadcasted_iota("int32", (B, L), 1)
