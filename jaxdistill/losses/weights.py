"""What a token counts for in a term: from the data, from statistics of the models, or both.

Each gives fp32 [B, L], signed and without gradient, 0 where the data's weight is. `signals` are arrays [B, L] of the
batch by name; "segment" (int32, from 1), where given, tells apart the sequences packed into one row, which otherwise is
one sequence.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.loss import Loss
from jaxdistill.losses.statistics import TeacherCrossEntropy, TeacherEntropy, ToReference

Signals = Mapping[str, Array]
Values = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Signal:
    """weight times a signal of the batch: a mask, an advantage, a preference. It may be negative."""

    name: str

    def statistics(self) -> Mapping[str, Loss]:
        return {}

    def __call__(self, values: Values, target: Any, weight_BL: Array, signals: Signals) -> Array:
        return times(weight_BL, signal(signals, self.name))


@dataclasses.dataclass(frozen=True)
class Length:
    """weight / |y|, with |y| what the tokens of the sequence weigh: every sequence counts for one."""

    def statistics(self) -> Mapping[str, Loss]:
        return {}

    def __call__(self, values: Values, target: Any, weight_BL: Array, signals: Signals) -> Array:
        return _ratio(weight_BL, per_sequence(weight_BL, signals))


@dataclasses.dataclass(frozen=True)
class Product:
    """Weights one after the other: each sees what the one before it gave, the first what the data gives."""

    weights: tuple[Any, ...]

    def statistics(self) -> Mapping[str, Loss]:
        each = enumerate(self.weights)
        return {f"{i}/{name}": loss for i, weight in each for name, loss in weight.statistics().items()}

    def __call__(self, values: Values, target: Any, weight_BL: Array, signals: Signals) -> Array:
        for i, weight in enumerate(self.weights):
            own = {name: values[f"{i}/{name}"] for name in weight.statistics()}
            weight_BL = weight(own, target, weight_BL, signals)
        return weight_BL


@dataclasses.dataclass(frozen=True)
class TokenScaled:
    """softmax over the sequence of the teacher's cross-entropy / tau (TSLD, arXiv 2308.06744).

    The weights of a sequence sum to one, as those of `Length`, which they become as tau grows. A token of which the
    teacher is certain counts least.
    """

    tau: float = 10.0

    def __post_init__(self):
        if not self.tau > 0:
            raise InputError(f"TokenScaled.tau is {self.tau}; it must be above 0")

    def statistics(self) -> Mapping[str, Loss]:
        return {"teacher": TeacherCrossEntropy()}

    def __call__(self, values: Values, target: Any, weight_BL: Array, signals: Signals) -> Array:
        scaled_BL = jax.lax.stop_gradient(values["teacher"]) / self.tau
        scaled_BL = scaled_BL - jnp.max(jnp.where(weight_BL != 0, scaled_BL, 0), axis=-1, keepdims=True)
        mass_BL = times(weight_BL, jnp.exp(scaled_BL))
        return _ratio(mass_BL, per_sequence(mass_BL, signals))


@dataclasses.dataclass(frozen=True)
class LargestGap:
    """weight for the fraction of tokens where KL(p || q) most exceeds KL(p || q_reference), 0 elsewhere (AdaSPEC).

    The tokens that the student has still to gain on, given what a reference draft could learn (arXiv 2510.19779; the
    released code keeps 0.4). The quantile is over all tokens of the batch that count, so that it does not depend on how
    they are sharded; ties with it stay. What is kept is not scaled up: the sum is still divided by all tokens.
    """

    reference: str
    fraction: float = 0.4

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise InputError(f"LargestGap.fraction is {self.fraction}; it must be above 0 and at most 1")

    def statistics(self) -> Mapping[str, Loss]:
        return {"student": ForwardKL(), "reference": ToReference(ForwardKL(), self.reference)}

    def __call__(self, values: Values, target: Any, weight_BL: Array, signals: Signals) -> Array:
        gap_BL = jax.lax.stop_gradient(values["student"] - values["reference"])
        least = jnp.nanquantile(jnp.where(weight_BL != 0, gap_BL, jnp.nan), 1 - self.fraction)
        return times(weight_BL, gap_BL >= least)


@dataclasses.dataclass(frozen=True)
class Entropy:
    """weight (H(p) / log V)^power: tokens on which the teacher is undecided count more.

    A simple form of what DB-LLM does with the ambiguity of both models (arXiv 2402.11960).

    Attributes:
      vocab_size: V, of the tokenizer; log V is the largest entropy there is.
      power: 0 is plain weighting.
    """

    vocab_size: int
    power: float = 1.0

    def statistics(self) -> Mapping[str, Loss]:
        return {"entropy": TeacherEntropy()}

    def __call__(self, values: Values, target: Any, weight_BL: Array, signals: Signals) -> Array:
        share_BL = jax.lax.stop_gradient(values["entropy"]) / jnp.log(self.vocab_size)
        return times(weight_BL, share_BL**self.power)


def signal(signals: Signals, name: str) -> Array:
    """A signal of the batch.

    Raises InputError where there is none of this name.
    """
    if name not in signals:
        known = ", ".join(map(repr, signals)) or "none"
        raise InputError(f"the batch has no signal {name!r} (there are: {known}); the data must bring it")
    return signals[name]


def times(weight_BL: Array, x_BL: Array) -> Array:
    """weight x, and 0 where the weight is, whatever x holds there; without gradient."""
    return jax.lax.stop_gradient(jnp.where(weight_BL != 0, weight_BL * x_BL, 0))


def per_sequence(x_BL: Array, signals: Signals) -> Array:
    """The sum of x over all tokens of a token's own sequence, fp32 [B, L]."""
    if "segment" not in signals:
        return jnp.broadcast_to(jnp.sum(x_BL, axis=-1, keepdims=True), x_BL.shape)
    num_segments = x_BL.shape[-1] + 1
    sums = jax.vmap(lambda x_L, segment_L: jax.ops.segment_sum(x_L, segment_L, num_segments))
    return jnp.take_along_axis(sums(x_BL, signals["segment"]), signals["segment"], axis=-1)


def _ratio(x_BL: Array, whole_BL: Array) -> Array:
    """x / whole, 0 where x is."""
    return jnp.where(x_BL != 0, x_BL / jnp.where(whole_BL != 0, whole_BL, 1), 0)
