"""Targets with the token of the data mixed in, and a teacher's tail filled: transforms that move mass."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.lazy import Lazy, check_part, each_column, knob, lazy, real
from jaxdistill.losses.targets import NO_ID, Sampled, TopK
from jaxdistill.losses.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class MixLabel:
    """weight 1[label] + (1 - weight) p, with p the teacher at temperature 1.

    With ForwardKL, and with it alone, this has the gradient of weight CE + (1 - weight) KL. On TopK targets the tail
    keeps the label's own share where the label was not kept, so its bucket is a little too full; with tail "none" and
    on Sampled targets nothing is approximate.

    Attributes:
      weight: from 0 to 1, a number or the name of a knob.
    """

    weight: float | str

    def __post_init__(self):
        check_part(self, "weight")

    def __call__(self, target: Any, knobs: Any) -> Any:
        weight = knob(self.weight, knobs)
        if isinstance(target, TopK):
            return with_label(target, weight, keep=1 - weight)
        if isinstance(target, Sampled):
            id_BLS = jnp.concatenate([target.id_BLS, target.label_BL[..., None]], axis=-1)
            extra_BLS = jnp.broadcast_to(weight, target.label_BL.shape)[..., None]
            kept_BLS = each_column(1 - weight) * target.weight_BLS
            return Sampled(target.label_BL, id_BLS, jnp.concatenate([kept_BLS, extra_BLS], axis=-1))
        weight = each_column(weight)
        return lazy(target, lambda z, z_BLV, vocabulary: _mixed(vocabulary.log_softmax(z), weight, target, vocabulary))


@dataclasses.dataclass(frozen=True)
class PromoteLabel:
    """The label mixed in as far as it takes to lead by `margin` (MFT, arXiv 2506.15702, and its code in ModelOpt).

    Where another token is the most probable, with probability m, the weight (m - p_y + margin) / (1 + m - p_y) makes
    p_y - m the margin. Where the label leads, its probability rises by the margin, to 1 at most.

    Attributes:
      margin: above 0 and below 1.
    """

    margin: float = 0.2

    def __post_init__(self):
        if not 0 < self.margin < 1:
            raise InputError(f"PromoteLabel.margin is {self.margin}; it must be above 0 and below 1")

    def __call__(self, target: Any, knobs: Any) -> Lazy:
        def promoted(z_target_BLV, _, vocabulary):
            log_p_BLV = vocabulary.log_softmax(z_target_BLV)
            at_label_BLV = vocabulary.at(target.label_BL, log_p_BLV.shape[-1])
            label_BL = vocabulary.sum(jnp.where(at_label_BLV, jnp.exp(log_p_BLV), 0))
            behind_BL = jnp.exp(vocabulary.max(jnp.where(at_label_BLV, MASKED, log_p_BLV))) - label_BL
            led_BL = jnp.minimum(self.margin / (1 - label_BL), 1)
            weight_BL = jnp.where(behind_BL > 0, (behind_BL + self.margin) / (1 + behind_BL), led_BL)
            return _mixed(log_p_BLV, weight_BL[..., None], target, vocabulary)

        return lazy(target, promoted)


@dataclasses.dataclass(frozen=True)
class UniformTail:
    """A TopK target made whole: the mass that was not kept is spread evenly over the entire vocabulary.

    Calibrated in the head and wrong in the tail, which is not uniform (arXiv 2503.16870 calls it label smoothing).
    """

    def __call__(self, target: Any, knobs: Any) -> Lazy:
        if not isinstance(target, TopK):
            raise InputError(f"UniformTail fills up a TopK target, and {type(target).__name__} is none: leave it out")

        def whole(z_BLV: Array, vocabulary: Vocabulary) -> Array:
            is_real_BLV = real(z_BLV)
            each_BL = jnp.exp(target.logtail_BL) / vocabulary.sum(is_real_BLV.astype(jnp.float32))
            spread_BLV = jnp.broadcast_to(each_BL[..., None], z_BLV.shape)
            p_BLV = vocabulary.scatter(spread_BLV, target.id_BLS, jnp.exp(target.logp_BLS))
            return jnp.where(is_real_BLV, _log(p_BLV), MASKED)

        return Lazy(target.label_BL, whole)


def with_label(target: TopK, mass: Any, *, keep: Any, tail: bool = True) -> TopK:
    """keep p + mass 1[label], in S + 1 entries; `tail` says whether the tail, times keep, stays."""
    mass_BLS = jnp.broadcast_to(mass, target.label_BL.shape)[..., None]
    is_label_BLS = target.id_BLS == target.label_BL[..., None]
    found_BLS = jnp.any(is_label_BLS, axis=-1, keepdims=True)
    p_BLS = each_column(keep) * jnp.exp(target.logp_BLS) + jnp.where(is_label_BLS, mass_BLS, 0)
    id_BLS = jnp.concatenate([target.id_BLS, jnp.where(found_BLS, NO_ID, target.label_BL[..., None])], axis=-1)
    logp_BLS = _log(jnp.concatenate([p_BLS, jnp.where(found_BLS, 0, mass_BLS)], axis=-1))
    logtail_BL = _log(keep * jnp.exp(target.logtail_BL)) if tail else jnp.full_like(target.logtail_BL, MASKED)
    return TopK(target.label_BL, id_BLS, logp_BLS, logtail_BL)


def _mixed(log_p_BLV: Array, weight: Any, target: Any, vocabulary: Vocabulary) -> Array:
    """log of weight 1[label] + (1 - weight) p."""
    at_label_BLV = vocabulary.at(target.label_BL, log_p_BLV.shape[-1])
    shrunk_BLV = jnp.maximum(log_p_BLV + jnp.log1p(-jnp.asarray(weight, jnp.float32)), MASKED)
    return jnp.where(at_label_BLV, jnp.logaddexp(shrunk_BLV, _log(weight)), shrunk_BLV)


def _log(x: Any) -> Array:
    """log, with MASKED for the log of 0."""
    return jnp.maximum(jnp.log(jnp.asarray(x, jnp.float32)), MASKED)
