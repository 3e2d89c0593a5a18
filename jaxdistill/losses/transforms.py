"""Targets made of targets: temper, interpolate, average, extrapolate. Each is lazy, and passes no gradient.

A number may be given as the name of a knob: the value of a controller, or, with letters BL at its end, a signal of each
token. All work on logits, so `loss.temperature` applies to what they return.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.lazy import Lazy, check_part, each_column, knob, lazy, reference_logits
from jaxdistill.losses.loss import check_temperature
from jaxdistill.losses.ranks import check_whole
from jaxdistill.losses.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Chain:
    """Transforms one after the other, the first first."""

    transforms: tuple[Any, ...]

    def __call__(self, target: Any, knobs: Any) -> Any:
        for transform in self.transforms:
            target = transform(target, knobs)
        return target


@dataclasses.dataclass(frozen=True)
class Temper:
    """softmax(z / temperature), for the teacher alone. The temperature of a token that counts must be above 0."""

    temperature: float | str

    def __post_init__(self):
        if not isinstance(self.temperature, str):
            check_temperature(self)

    def __call__(self, target: Any, knobs: Any) -> Lazy:
        temperature = jnp.asarray(knob(self.temperature, knobs))
        temperature = jnp.where(temperature > 0, temperature, 1)  # 0 where a chunk is filled up: counts nowhere
        return lazy(target, lambda z_target_BLV, *_: z_target_BLV / each_column(temperature))


@dataclasses.dataclass(frozen=True)
class Interpolate:
    """softmax((1 - t) z_student + t z_teacher), the student's part without gradient (TAID, arXiv 2501.16937).

    It is the normalised geometric mean p^t q^(1 - t). At t = 0 the target is the student, with loss and gradient 0.
    """

    t: float | str

    def __post_init__(self):
        check_part(self, "t")

    def __call__(self, target: Any, knobs: Any) -> Lazy:
        t = each_column(knob(self.t, knobs))
        return lazy(target, lambda z_target_BLV, z_BLV, _: (1 - t) * z_BLV + t * z_target_BLV)


@dataclasses.dataclass(frozen=True)
class Average:
    """The mean of the teacher and its references, of "probability" (at temperature 1) or "logit".

    The mean of logits is the normalised geometric mean of the distributions: another target, sharper where they differ.
    """

    references: tuple[str, ...]
    of: Literal["probability", "logit"] = "probability"

    def __post_init__(self):
        if self.of not in ("probability", "logit"):
            raise InputError(f"Average.of is {self.of!r}; it is 'probability' or 'logit'")

    def __call__(self, target: Any, knobs: Any) -> Lazy:
        def mean(z_target_BLV, z_BLV, vocabulary):
            others = [reference_logits(target, name, z_BLV, vocabulary) for name in self.references]
            if self.of == "logit":
                return sum(others, z_target_BLV) / (1 + len(others))
            log_p = jnp.stack([vocabulary.log_softmax(z) for z in (z_target_BLV, *others)])
            return jnp.maximum(jax.nn.logsumexp(log_p, axis=0) - jnp.log(len(log_p)), MASKED)

        return lazy(target, mean)


@dataclasses.dataclass(frozen=True)
class L1Gap:
    """scale |p_a - p_b|_1 + floor: a number of each token that grows with what divides two models."""

    scale: float
    floor: float = 1e-3

    def of(self, distance_BL: Array) -> Array:
        return self.scale * distance_BL + self.floor


@dataclasses.dataclass(frozen=True)
class Extrapolate:
    """softmax(z + weight (z_toward - z_away)): the teacher, moved along what tells one model from another.

    AlignDistil (arXiv 2503.02832): away from a model of reversed preferences. Dynamic logit fusion (arXiv 2406.15480):
    a large model, moved as fine-tuning moved a small one.

    Attributes:
      away: the reference to leave.
      toward: the reference to approach; None for the teacher itself.
      weight: a number, a knob, or an `L1Gap` of the two models.
    """

    away: str
    toward: str | None = None
    weight: float | str | L1Gap = 1.0

    def __call__(self, target: Any, knobs: Any) -> Lazy:
        def moved(z_target_BLV, z_BLV, vocabulary):
            away_BLV = reference_logits(target, self.away, z_BLV, vocabulary)
            toward_BLV = z_target_BLV
            if self.toward is not None:
                toward_BLV = reference_logits(target, self.toward, z_BLV, vocabulary)
            weight = self._weight(toward_BLV, away_BLV, knobs, vocabulary)
            return jnp.maximum(z_target_BLV + weight * (toward_BLV - away_BLV), MASKED)

        return lazy(target, moved)

    def _weight(self, toward_BLV: Array, away_BLV: Array, knobs: Any, vocabulary: Vocabulary) -> Any:
        if not isinstance(self.weight, L1Gap):
            return each_column(knob(self.weight, knobs))
        p_BLV, other_BLV = (jnp.exp(vocabulary.log_softmax(z_BLV)) for z_BLV in (toward_BLV, away_BLV))
        return self.weight.of(vocabulary.sum(jnp.abs(p_BLV - other_BLV)))[..., None]


@dataclasses.dataclass(frozen=True)
class SetUniform:
    """The student itself with p_label = 1 / V, and all other tokens in their old ratios (Unilogit, arXiv 2505.06027).

    z'_label = log sum_{v != label} exp z_v - log(V - 1). It needs no teacher, and serves to forget a token.
    """

    def __call__(self, target: Any, knobs: Any) -> Lazy:
        def flattened(z_BLV: Array, vocabulary: Vocabulary) -> Array:
            at_label_BLV = vocabulary.at(target.label_BL, z_BLV.shape[-1])
            others_BL = vocabulary.sum((z_BLV > MASKED / 2).astype(jnp.float32)) - 1
            level_BL = vocabulary.lse(jnp.where(at_label_BLV, MASKED, z_BLV)) - jnp.log(others_BL)
            return jnp.where(at_label_BLV, level_BL[..., None], z_BLV)

        return Lazy(target.label_BL, flattened)


@dataclasses.dataclass(frozen=True)
class Noise:
    """softmax(z + scale n) with standard normal n, the same for a token in every epoch, so that none averages it away.

    Attributes:
      scale: a number or a knob.
      index: knob with the number of each token in the data, int32 [B, L]; the noise is a function of it and of `seed`.
      seed: of the noise.
    """

    scale: float | str
    index: str = "index_BL"
    seed: int = 0

    def __call__(self, target: Any, knobs: Any) -> Lazy:
        scale, index_BL = each_column(knob(self.scale, knobs)), knob(self.index, knobs)

        def noisy(z_target_BLV, _, vocabulary):
            check_whole(vocabulary, "Noise")
            key_BL = jax.vmap(jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(self.seed))))(index_BL)
            normal = functools.partial(jax.random.normal, shape=z_target_BLV.shape[-1:])
            return jnp.maximum(z_target_BLV + scale * jax.vmap(jax.vmap(normal))(key_BL), MASKED)

        return lazy(target, noisy)
