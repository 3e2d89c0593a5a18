"""An objective: a weighted sum of terms, each a loss against a target with a weight for every token.

total = sum_t sum_k coef_k weight_kt loss_k(z_t, target_kt)

The four parts are independent, so that published methods are rows of one table: which loss, against which transform of
the teacher's target, on which tokens, with which coefficient at this step.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.chunks import ChunkDivergence
from jaxdistill.losses.hidden import Layers
from jaxdistill.losses.loss import Loss, RowLoss
from jaxdistill.losses.paired import PairedLoss
from jaxdistill.losses.targets import Target

Knobs = Mapping[str, Any]
EXTRAS = "extras"  # among parameters: what terms train beside the model, which is no part of it


class Transform(Protocol):
    """A target made of a target, lazily: it works on chunks, and must be hashable."""

    def __call__(self, target: Any, knobs: Knobs) -> Any: ...


class Weight(Protocol):
    """What a token counts for in a term, signed and without gradient.

    `statistics` are losses whose values, one number a token, it needs beforehand: a pass over the heads without
    gradient gives them.
    """

    def statistics(self) -> Mapping[str, Loss]: ...

    def __call__(
        self, values: Mapping[str, Array], target: Target, weight_BL: Array, signals: Mapping[str, Array]
    ) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Term:
    """coef * weight * loss(target). Presence, not size, turns a term on.

    Attributes:
      loss: maps (z_BLV, target) to fp32 [B, L]; `losses.loss` tells the kinds.
      coef: a number, a schedule called as coef(step, steps), or the name of a controller.
      target: a transform of the step's target, or None for the target itself.
      weight: of each token, or None for the weight that the data gives it.
    """

    loss: Any
    coef: Any = 1.0
    target: Any = None
    weight: Any = None

    def at(self, step: int, steps: int) -> float:
        """The coefficient at one step of `steps`; 1 where a controller gives it."""
        if isinstance(self.coef, str):
            return 1.0
        return float(self.coef(step, steps) if callable(self.coef) else self.coef)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Terms by name. Coefficients are inputs (`knobs`), so that a schedule never recompiles the step."""

    terms: tuple[tuple[str, Term], ...]

    @classmethod
    def of(cls, terms: Mapping[str, Term]) -> "Objective":
        """The terms without their numbers: two objectives that differ in these alone share one compiled program."""

        def without_number(term: Term) -> Term:
            return term if isinstance(term.coef, str) else dataclasses.replace(term, coef=1.0)

        return cls(tuple((name, without_number(term)) for name, term in terms.items()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.terms)

    def split(self) -> "Kinds":
        """The terms by what they look at."""

        def of(*kinds: type) -> tuple[tuple[str, Term], ...]:
            return tuple(pair for pair in self.terms if isinstance(pair[1].loss, kinds))

        others = of(Layers, ChunkDivergence, PairedLoss, RowLoss)
        on_logits = tuple(pair for pair in self.terms if pair not in others)
        return Kinds(*map(Objective, (on_logits, of(Layers), of(ChunkDivergence), of(PairedLoss), of(RowLoss))))

    def extras(self, key: Array, width: int, teacher_width: int | None) -> dict[str, Any]:
        """What terms train beside the model, by name, as {EXTRAS: ...} for its parameters; {} where none does.

        Raises InputError where a term needs a teacher's width and there is none.
        """
        terms = self.split().rows.terms
        if terms and teacher_width is None:
            raise InputError(f"{terms[0][0]} projects a teacher's states: set experiment.teacher to Across")
        made = {
            name: term.loss.init(jax.random.fold_in(key, number), width, teacher_width)
            for number, (name, term) in enumerate(terms)
        }
        return {EXTRAS: made} if made else {}

    def parts(self, each: bool) -> dict[str, "Objective"]:
        """What has a gradient of its own: with `each` every term by its name, else all of them as "loss"."""
        return {name: Objective(((name, term),)) for name, term in self.terms} if each else {"loss": self}

    def layers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The layers of student and teacher whose hidden states the terms look at."""
        pairs = [pair for _, term in self.split().states.terms for pair in term.loss.pairs]
        return tuple({here for here, _ in pairs}), tuple({there for _, there in pairs})

    def target(self, name: str, target: Target, knobs: Knobs) -> Any:
        """What the term of this name is held against."""
        transform = dict(self.terms)[name].target
        return target if transform is None else transform(target, knobs)

    def coef(self, name: str, knobs: Knobs) -> Any:
        """The coefficient of the term of this name: its own knob, times its controller's where it names one."""
        by = dict(self.terms)[name].coef
        return knobs[name] * knobs[by] if isinstance(by, str) else knobs[name]


class Kinds(NamedTuple):
    """The terms of an objective that look at logits, at hidden states, at chunks, at places of two tokenizers, and at
    whole rows of both."""

    logits: Objective
    states: Objective
    chunks: Objective
    places: Objective
    rows: Objective
