"""Skewed KL: the second argument is mixed with the first, which bounds the loss and its gradient (DistiLLM)."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.loss import Divergence, check_temperature
from jaxdistill.losses.vocabulary import Vocabulary

LARGEST = 30.0  # beside its exp, 1 is nothing, and its own rounding is small


def log_over_mixture(log_ratio_BLV: Array, alpha: Array | float) -> Array:
    """log(p / (alpha p + (1 - alpha) q)) = d - log(1 + alpha (e^d - 1)), where d = log(p / q).

    Exactly 0 at d = 0, and precise near it: a mixture of probabilities would leave nothing of a small difference.
    """
    small_BLV = jnp.minimum(log_ratio_BLV, LARGEST)  # beyond it the result is -log alpha, where there is an alpha
    return jnp.where(jnp.asarray(alpha) > 0, small_BLV, log_ratio_BLV) - jnp.log1p(alpha * jnp.expm1(small_BLV))


@dataclasses.dataclass(frozen=True)
class SkewForwardKL(Divergence):
    """T^2 KL(p || m) with m = alpha p + (1 - alpha) q, teacher p, student q (DistiLLM, arXiv 2402.03898).

    At most -T^2 log alpha, where teacher and student share no token; ForwardKL at alpha = 0. With g = -(1 - alpha) p /
    m its gradient in the logits is T q (g - sum_v q_v g_v), and p / m <= 1 / alpha keeps it bounded where q = 0.

    Attributes:
      alpha: the teacher's part of the mixture, at least 0 and below 1. A subclass whose `per_token` gives a number has
        an alpha of each token's own.
      temperature: T.
    """

    alpha: float = 0.1
    temperature: float = 1.0

    def __post_init__(self):
        check_temperature(self)
        check_share(self, "alpha")

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        alpha = of_token[0] if of_token else self.alpha
        return (jnp.exp(log_p_BLV) * log_over_mixture(log_p_BLV - log_q_BLV, alpha),)


@dataclasses.dataclass(frozen=True)
class SkewReverseKL(Divergence):
    """T^2 KL(q || m) with m = alpha q + (1 - alpha) p, teacher p, student q (DistiLLM, arXiv 2402.03898).

    At most -T^2 log alpha; ReverseKL at alpha = 0. The gradient passes through q in both places.

    Attributes:
      alpha: the student's part of the mixture, at least 0 and below 1; of each token's own in a subclass, as above.
      temperature: T.
    """

    alpha: float = 0.1
    temperature: float = 1.0

    def __post_init__(self):
        check_temperature(self)
        check_share(self, "alpha")

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        alpha = of_token[0] if of_token else self.alpha
        return (jnp.exp(log_q_BLV) * log_over_mixture(log_q_BLV - log_p_BLV, alpha),)


@dataclasses.dataclass(frozen=True)
class DifficultySkew(SkewForwardKL):
    """Skewed forward KL on difficult tokens, forward KL on the others (after Self-Evolution KD, arXiv 2412.15303).

    A token is difficult where KL(p || q) exceeds `threshold` nats; there, and only there, `alpha` of the target is
    mixed into the student, which it then need not learn at once. The paper's p is the teacher with the label mixed in.
    Its constants are not public: `alpha` 0 is plain distillation.
    """

    threshold: float = 1.0

    def per_token(
        self, log_p_BLV: Array, log_q_BLV: Array, target: object, vocabulary: Vocabulary
    ) -> tuple[Array, ...]:
        difficulty_BL = vocabulary.sum(jnp.exp(log_p_BLV) * (log_p_BLV - log_q_BLV))
        return (jnp.where(difficulty_BL > self.threshold, self.alpha, 0.0),)


def check_share(loss: object, name: str) -> None:
    """Raise InputError where a share that must leave something to the other side does not."""
    if not 0 <= getattr(loss, name) < 1:
        raise InputError(
            f"{type(loss).__name__}.{name} is {getattr(loss, name)}; it must be at least 0 and below 1, "
            "since at 1 both arguments are the same distribution"
        )
