"""How the gradients of several terms become one: what a sum of losses cannot say.

A combiner takes the gradient of every term, coefficients included, over all tokens of the batch, micro-batches and
devices. So the step keeps one gradient a term, in the memory of as many parameters, and makes one backward pass for
each; without a combiner there is one of both, whatever the number of terms.

Where a combiner says "last layer", it is the last slice of the stacked layers. What it finds is a number: no gradient
passes through it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdistill.dims import STACKED
from jaxdistill.errors import InputError

State = dict[str, Array]
Gradients = Mapping[str, Any]


class Combiner:
    """A pure state machine, as controllers are; most have no state."""

    def init(self, names: tuple[str, ...]) -> State:
        """The state before the first step, of terms with these names."""
        return {}

    def __call__(self, gradients: Gradients, values: Mapping[str, Array], state: State) -> tuple[Any, State, State]:
        """(the gradient, the state after this step, numbers to log by name).

        Args:
          gradients: of each term by name, trees of the structure of the parameters.
          values: the mean of each term.
          state: as `init` or the step before gave it.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class GradMag(Combiner):
    """sum_i w_i g_i with w_i = 1 / |G_i| over the sum of all of these: every term moves the last layer equally far.

    ALM's way to train on text beside the teacher (arXiv 2503.20083, 3.4), whose gradients are a hundred times larger.
    Coefficients then change nothing but the length of the whole. A term whose gradient is zero has no direction, and
    the weight 0.

    Attributes:
      of: what G_i is: of the "last" layer, or of "all" parameters.
    """

    of: Literal["last", "all"] = "last"

    def __post_init__(self):
        if self.of not in ("last", "all"):
            raise InputError(f"GradMag.of is {self.of!r}; it must be the 'last' layer or 'all' parameters")

    def __call__(self, gradients: Gradients, values: Mapping[str, Array], state: State) -> tuple[Any, State, State]:
        norms = {name: optax.tree.norm(g if self.of == "all" else last_layer(g)) for name, g in gradients.items()}
        inverse = {name: jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0) for name, norm in norms.items()}
        whole = sum(inverse.values())
        weights = {name: x / jnp.where(whole > 0, whole, 1) for name, x in inverse.items()}
        return weighted(gradients, weights), state, _named("weight", weights)


@dataclasses.dataclass(frozen=True)
class GradNorm(Combiner):
    """sum_i w_i g_i with weights that are learned (Chen et al. 2018, arXiv 1711.02257), starting at 1.

    With G_i = w_i |g_i| of the last layer and r_i the term's mean over that of the first step, divided by the mean of
    these ratios, a step takes `rate` times the derivative of sum_i |G_i - mean(G) r_i^alpha| off each weight, the right
    side taken as a constant: terms that learn slower weigh more. Weights below 0 become 0; their sum stays the number
    of terms.

    Attributes:
      alpha: how much slower learning counts; at 0 all G_i become equal.
      rate: of the weights.
    """

    alpha: float = 0.12
    rate: float = 0.025

    def __post_init__(self):
        if not (self.alpha >= 0 and self.rate > 0):
            raise InputError(f"GradNorm has alpha {self.alpha} and rate {self.rate}; at least 0, and above 0")

    def init(self, names: tuple[str, ...]) -> State:
        return {f"weight/{name}": jnp.float32(1) for name in names} | {
            f"first/{name}": jnp.float32(jnp.inf) for name in names
        }

    def __call__(self, gradients: Gradients, values: Mapping[str, Array], state: State) -> tuple[Any, State, State]:
        names = tuple(gradients)
        weights, first = (jnp.stack([state[f"{what}/{name}"] for name in names]) for what in ("weight", "first"))
        norms = jnp.stack([optax.tree.norm(last_layer(gradients[name])) for name in names])
        value = jnp.stack([jnp.asarray(values[name], jnp.float32) for name in names])
        first = jnp.where(jnp.isinf(first), value, first)
        ratio = value / jnp.where(first != 0, first, 1)
        slower = jnp.maximum(ratio / jnp.mean(ratio), 0) ** self.alpha
        slope = jnp.sign(weights * norms - jnp.mean(weights * norms) * slower) * norms
        moved = jnp.maximum(weights - self.rate * slope, 0)
        moved = moved * len(names) / jnp.maximum(jnp.sum(moved), jnp.finfo(jnp.float32).tiny)
        after = _named("weight", dict(zip(names, moved, strict=True)))
        after |= _named("first", dict(zip(names, first, strict=True)))
        used = dict(zip(names, weights, strict=True))
        return weighted(gradients, used), after, _named("weight", used)


@dataclasses.dataclass(frozen=True)
class ClipEach(Combiner):
    """The sum of all gradients, each cut to the norm `norm` first."""

    norm: float = 1.0

    def __post_init__(self):
        if not self.norm > 0:
            raise InputError(f"ClipEach.norm is {self.norm}; it must be above 0")

    def __call__(self, gradients: Gradients, values: Mapping[str, Array], state: State) -> tuple[Any, State, State]:
        norms = {name: optax.tree.norm(gradient) for name, gradient in gradients.items()}
        weights = {name: self.norm / jnp.maximum(norm, self.norm) for name, norm in norms.items()}
        return weighted(gradients, weights), state, _named("weight", weights)


@dataclasses.dataclass(frozen=True)
class PCGrad(Combiner):
    """The sum of all gradients, each without what points against another (Yu et al. 2020, arXiv 2001.06782).

    g_i loses (g_i . g_j) / |g_j|^2 g_j for every other term j where the product is negative, one after the other. The
    paper draws their order at random at each step; here it is that of the terms, which for two terms is the same.
    """

    def __call__(self, gradients: Gradients, values: Mapping[str, Array], state: State) -> tuple[Any, State, State]:
        def freed(name: str) -> Any:
            own = gradients[name]
            for other, theirs in gradients.items():
                if other != name:
                    along, square = (jnp.asarray(optax.tree.vdot(x, theirs)) for x in (own, theirs))
                    share = jnp.where(square > 0, jnp.minimum(along, 0) / jnp.where(square > 0, square, 1), 0)
                    own = jax.tree.map(lambda x, y: x - share * y, own, theirs)  # noqa: B023
            return own

        return weighted({name: freed(name) for name in gradients}, dict.fromkeys(gradients, 1.0)), state, {}


def last_layer(gradient: Any) -> Any:
    """The gradient in the last of the stacked layers."""
    return jax.tree.map(lambda x: x[-1], gradient[STACKED])


def weighted(gradients: Gradients, weights: Mapping[str, Any]) -> Any:
    """sum_i w_i g_i."""
    scaled = [jax.tree.map(lambda x: weights[name] * x, gradient) for name, gradient in gradients.items()]  # noqa: B023
    return jax.tree.map(lambda *x: sum(x), *scaled)


def _named(what: str, numbers: Mapping[str, Array]) -> State:
    return {f"{what}/{name}": number for name, number in numbers.items()}
