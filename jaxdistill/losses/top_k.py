"""Divergences from a teacher of whom only the top K tokens are known, and what to make of the rest."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.labels import with_label
from jaxdistill.losses.loss import Divergence, Sparse
from jaxdistill.losses.targets import NO_ID, Labels, TopK
from jaxdistill.losses.vocabulary import WHOLE

FLOOR = 2.0**-20
"""The least mass of a tail. A tail is one minus a sum, so fp32 knows no smaller one from none; and with K = V it is
this on both sides, where a ratio of two roundings would be a phantom."""

Tail = Literal["bucket", "none", "renormalised", "label"]


@dataclasses.dataclass(frozen=True)
class TopKDivergence(Sparse):
    """Any divergence, over the K kept tokens and what the rest is taken for.

    With a = sum_K p, b = sum_K q, and for forward KL at T = 1, where gradients are those in logit j:

      "bucket"        sum_K p log(p / q) + (1 - a) log((1 - a) / (1 - b)): all other tokens are one, the ghost token
                      (arXiv 2503.16870). A divergence of K + 1 outcomes: at least 0, at most the full one, and the full
                      one at K = V. p is matched exactly on K (q_j - p_j) and so is the mass of the tail
                      (q_j (a - b) / (1 - b)); how the tail is shared out is left to the student.
      "none"          sum_K p log(p / q): a q_j - p_j on K. Not a divergence: its optimum is q = p / a, and it can be
                      negative. It is not clamped at 0, which would take its gradient away.
      "renormalised"  p / a in place of p: the same optimum, with weight 1 for every token; -log a at q = p.
      "label"         the rest of the mass goes to the token of the data (the paper's naive fix).

    A uniform tail (label smoothing) needs the sum of all logits: take a divergence with `labels.UniformTail` as target.

    Temperature T applies among the kept tokens, p_j = a softmax_K(log p / T)_j and q_j = b softmax_K(z / T)_j. What a
    tail has at another temperature cannot be told from its mass, so both masses stay those of T = 1: at every T the
    loss is 0 where student and teacher agree, with "bucket" and "none".

    Attributes:
      divergence: such as ForwardKL(T), ReverseKL(T) or JensenShannon(beta).
      tail: one of the four.

    Raises InputError for another tail, "label" at T other than 1, or a target that is not TopK.
    """

    divergence: Divergence = ForwardKL()
    tail: Tail = "bucket"

    def __post_init__(self):
        if self.tail == "uniform":
            raise InputError("a uniform tail needs all logits: use Term(ForwardKL(), target=UniformTail()) instead")
        if self.tail not in ("bucket", "none", "renormalised", "label"):
            raise InputError(f"there is no tail {self.tail!r}; there are 'bucket', 'none', 'renormalised' and 'label'")
        if self.tail == "label" and self.divergence.temperature != 1:
            raise InputError("tail 'label' mixes the label into the teacher of temperature 1: set the temperature to 1")

    def ids(self, target: Any) -> Array:
        return self._known(target).id_BLS

    def value(self, lse_BL: Array, z_BLS: Array, target: Any) -> Array:
        target, T = self._known(target), self.divergence.temperature
        is_kept_BLS = target.id_BLS != NO_ID
        log_a_BL, log_p_BLS = _split(target.logp_BLS, is_kept_BLS, T)
        log_b_BL, log_q_BLS = _split(z_BLS, is_kept_BLS, T)
        log_b_BL = log_b_BL - lse_BL
        if self.tail != "renormalised":
            log_p_BLS = log_p_BLS + log_a_BL[..., None]
        tails_BL = jnp.maximum(target.logtail_BL, math.log(FLOOR)), _log_rest(log_b_BL)
        log_p_BLS = _outcomes(log_p_BLS, is_kept_BLS, tails_BL[0], self.tail)
        log_q_BLS = _outcomes(log_q_BLS + log_b_BL[..., None], is_kept_BLS, tails_BL[1], self.tail)
        fixed = self.divergence.fixed(log_p_BLS, log_q_BLS, _place_of_label(target), WHOLE)
        return self.divergence.value(*map(WHOLE.sum, self.divergence.points(log_p_BLS, log_q_BLS, *fixed)))

    def _known(self, target: Any) -> TopK:
        if not isinstance(target, TopK):
            raise InputError(
                f"TopKDivergence needs a teacher's top K tokens, not {type(target).__name__}: "
                "give experiment.teacher a cache of them, or use the divergence itself"
            )
        return with_label(target, jnp.exp(target.logtail_BL), keep=1.0, tail=False) if self.tail == "label" else target


def _split(log_BLS: Array, is_kept_BLS: Array, temperature: float) -> tuple[Array, Array]:
    """(log of the mass that the kept tokens have together, their distribution among themselves at the temperature)."""
    log_BLS = jnp.where(is_kept_BLS, log_BLS, MASKED)
    mass_BL = jax.nn.logsumexp(log_BLS, axis=-1)
    return mass_BL, WHOLE.log_softmax(log_BLS / temperature)


def _log_rest(log_b_BL: Array) -> Array:
    """log(1 - b), at least log FLOOR. The floor is for the value: the gradient goes on to push a lost tail back."""
    above_BL = jnp.maximum(log_b_BL - math.log1p(-FLOOR), 0)
    log_b_BL = log_b_BL - jax.lax.stop_gradient(above_BL)
    return jnp.log(-jnp.expm1(log_b_BL))


def _outcomes(log_BLS: Array, is_kept_BLS: Array, logtail_BL: Array, tail: Tail) -> Array:
    """The K tokens and the bucket, [B, L, S + 1]; MASKED in both distributions is an outcome that does not count."""
    last_BL = logtail_BL if tail == "bucket" else jnp.full_like(logtail_BL, MASKED)
    return jnp.concatenate([jnp.where(is_kept_BLS, log_BLS, MASKED), last_BL[..., None]], axis=-1)


def _place_of_label(target: TopK) -> Labels:
    """Where the label is among the K + 1 outcomes: the last, where it is not kept."""
    is_label_BLS = target.id_BLS == target.label_BL[..., None]
    here_BL = jnp.argmax(is_label_BLS, axis=-1)
    return Labels(jnp.where(jnp.any(is_label_BLS, axis=-1), here_BL, target.id_BLS.shape[-1]))
