"""Numbers that a run adapts as it goes: pure state machines, read by terms and transforms as knobs.

A controller's state is a dict of scalars. `init` makes it, `update` follows every step and `on_evaluation` every
evaluation; `value` reads the knob. All but the schedule at the end may be traced. Metrics must be global means, as the
step gives them, so that every device decides alike.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError

State = dict[str, Array]


class Controller:
    """What does not change by itself: a controller overrides what moves it."""

    def update(self, state: State, metrics: Mapping[str, Any], step: Any, steps: Any) -> State:
        """The state after step `step` (from 0) of `steps`, whose `metrics` hold the mean of each term by name."""
        return state

    def on_evaluation(self, state: State, loss: Any) -> State:
        """The state after an evaluation that gave this validation loss."""
        return state


@dataclasses.dataclass(frozen=True)
class TaidTime(Controller):
    """t of TAID, from the student at 0 to the teacher at 1 (arXiv 2501.16937; the released code).

    With L the term's mean: rel = (L_before - L) / L_before, m = beta m + (1 - beta) rel,
    t = min(end, max(linear, t + alpha sigmoid(m) (1 - t))), linear from start to end over the run. t never falls. The
    first step only remembers its loss. L contains the target's changes as t moves, as in the released code.

    Attributes:
      term: whose mean drives t.
      start, end: of t.
      alpha: the largest step of t; 0 is the linear schedule.
      beta: memory of the relative change.
    """

    term: str = "taid"
    start: float = 0.4
    end: float = 1.0
    alpha: float = 5e-4
    beta: float = 0.99

    def __post_init__(self):
        if not 0 <= self.start <= self.end <= 1:
            raise InputError(f"TaidTime goes from {self.start} to {self.end}; both must rise within 0 and 1")
        if not (self.alpha >= 0 and 0 <= self.beta < 1):
            raise InputError(
                f"TaidTime has alpha {self.alpha} and beta {self.beta}; they must not be negative, nor beta reach 1"
            )

    def init(self) -> State:
        return {"t": jnp.float32(self.start), "momentum": jnp.float32(0), "loss": jnp.float32(jnp.inf)}

    def value(self, state: State) -> Array:
        return state["t"]

    def update(self, state: State, metrics: Mapping[str, Any], step: Any, steps: Any) -> State:
        loss, t = jnp.asarray(metrics[self.term], jnp.float32), state["t"]
        before = jnp.where(jnp.isinf(state["loss"]), loss, state["loss"])
        change = jnp.where(before > 0, (before - loss) / jnp.where(before > 0, before, 1), 0)
        momentum = self.beta * state["momentum"] + (1 - self.beta) * change
        linear = self.start + (self.end - self.start) * step / steps
        faster = t + self.alpha * jax.nn.sigmoid(momentum) * (1 - t)
        moved = jnp.minimum(self.end, jnp.maximum(linear, faster))
        return {"t": jnp.where(jnp.isinf(state["loss"]), t, moved), "momentum": momentum, "loss": loss}


@dataclasses.dataclass(frozen=True)
class DistillmPhi(Controller):
    """phi of DistiLLM, how often the student's own text is used (arXiv 2402.03898; the released code).

    It starts at 0 and rises by `rise`, to 1 at most, at every evaluation whose loss is at least `margin` above the
    reference. The reference is the first evaluation's loss, and moves only when phi does.
    """

    rise: float = 0.1
    margin: float = 0.1

    def __post_init__(self):
        if not (self.rise > 0 and self.margin >= 0):
            raise InputError(
                f"DistillmPhi has rise {self.rise} and margin {self.margin}; they must be above 0 and at least 0"
            )

    def init(self) -> State:
        return {"phi": jnp.float32(0), "reference": jnp.float32(jnp.inf)}

    def value(self, state: State) -> Array:
        return state["phi"]

    def on_evaluation(self, state: State, loss: Any) -> State:
        loss = jnp.asarray(loss, jnp.float32)
        is_first, rises = jnp.isinf(state["reference"]), loss >= state["reference"] + self.margin
        phi = jnp.where(rises, jnp.minimum(state["phi"] + self.rise, 1), state["phi"])
        return {"phi": phi, "reference": jnp.where(is_first | rises, loss, state["reference"])}


@dataclasses.dataclass(frozen=True)
class Staged:
    """A coefficient that is `value` from the start to the stop of a stage, and 0 outside: a schedule without state.

    Attributes:
      start, stop: the stage as fractions of the run; the step at `stop` is outside, unless it is the end.
      value: of the coefficient inside.
    """

    start: float = 0.0
    stop: float = 1.0
    value: float = 1.0

    def __post_init__(self):
        if not 0 <= self.start < self.stop <= 1:
            raise InputError(
                f"Staged runs from {self.start} to {self.stop}; both are fractions of the run, in this order"
            )

    def __call__(self, step: int, steps: int) -> float:
        return self.value if self.start * steps <= step < self.stop * steps else 0.0
