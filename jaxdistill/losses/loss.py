"""What a loss is: one fp32 number per token, and how much of the logits it needs to know.

Three kinds, from the cheapest to the dearest. All three are defined on whole logits by `loss(z_BLV, target)`, and that
is the definition to check against a paper; what the first two declare beside it lets `linear_heads` stream them.

  Sparse       a function of the log-normaliser and of the logits at a few ids: cross-entropy, top-K, random samples.
  Divergence   a function of sums over the vocabulary of something of (log p, log q): KL both ways, JSD, skew, TV.
  any callable a function of all logits of a token: what has to sort them.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.losses.vocabulary import WHOLE, Vocabulary

Loss = Callable[[Array, Any], Array]


class Sparse:
    """A loss of the log-normaliser and the logits at S ids a token.

    `ids` and `value` are all there is to one. `lse_BL` is the log-normaliser of z / temperature; `z_BLS` are the logits
    at the ids, divided by the temperature, and 0 at NO_ID.
    """

    @property
    def temperature(self) -> float:
        """What the logits are divided by; a loss with a temperature makes it a field."""
        return 1.0

    def ids(self, target: Any) -> Array:
        """The ids whose logits the loss reads, int32 [B, L, S]."""
        raise NotImplementedError

    def value(self, lse_BL: Array, z_BLS: Array, target: Any) -> Array:
        """The loss, fp32 [B, L]."""
        raise NotImplementedError

    def __call__(self, z_BLV: Array, target: Any) -> Array:
        z_BLV = z_BLV / self.temperature
        return self.value(WHOLE.lse(z_BLV), WHOLE.pick(z_BLV, self.ids(target)), target)


class Divergence:
    """A loss of sums over the vocabulary, sum_v f(log p_v, log q_v), with p the target and q the student.

    Both sides are softmax(logits / temperature). The target is a whole distribution: it gives logits, and may look at
    the student's (as TAID does) without passing a gradient.
    """

    @property
    def temperature(self) -> float:
        """What the logits of both sides are divided by; a loss with a temperature makes it a field."""
        return 1.0

    def points(self, log_p_BLV: Array, log_q_BLV: Array, at_label_BLV: Array, *of_token: Array) -> tuple[Array, ...]:
        """What every id of the vocabulary contributes to each sum, fp32 [B, L, V] each.

        `at_label_BLV` is true at the token of the data; `of_token` are the numbers of `per_token`, as [B, L, 1].
        """
        raise NotImplementedError

    def per_token(self, log_p_BLV: Array, log_q_BLV: Array, target: Any, vocabulary: Vocabulary) -> tuple[Array, ...]:
        """Numbers of a token that `points` depends on, fp32 [B, L] each, without gradient; most need none."""
        return ()

    def value(self, *sum_BL: Array) -> Array:
        """The loss from the sums; by default temperature^2 times the only one (Hinton et al. 2015, section 2.1)."""
        (sum_only_BL,) = sum_BL
        return self.temperature**2 * sum_only_BL

    def log_p(self, z_BLV: Array, target: Any, vocabulary: Vocabulary) -> Array:
        """The target's log-probabilities on the student's columns."""
        if not hasattr(target, "logits"):
            raise InputError(
                f"{type(self).__name__} needs a teacher's whole distribution, not {type(target).__name__}: "
                "set experiment.teacher to an online one, or use a loss for such targets"
            )
        z_target_BLV = target.logits(jax.lax.stop_gradient(z_BLV), vocabulary)
        return vocabulary.log_softmax(z_target_BLV / self.temperature)

    def __call__(self, z_BLV: Array, target: Any) -> Array:
        log_p_BLV = self.log_p(z_BLV, target, WHOLE)
        log_q_BLV = WHOLE.log_softmax(z_BLV / self.temperature)
        points_BLV = self.points(log_p_BLV, log_q_BLV, *self.fixed(log_p_BLV, log_q_BLV, target, WHOLE))
        return self.value(*map(WHOLE.sum, points_BLV))

    def fixed(self, log_p_BLV: Array, log_q_BLV: Array, target: Any, vocabulary: Vocabulary) -> tuple[Array, ...]:
        """The arguments of `points` that no gradient passes: where the label is, and the numbers of each token."""
        numbers = self.per_token(log_p_BLV, jax.lax.stop_gradient(log_q_BLV), target, vocabulary)
        at_label_BLV = vocabulary.at(target.label_BL, log_q_BLV.shape[-1])
        return at_label_BLV, *(jax.lax.stop_gradient(x_BL)[..., None] for x_BL in numbers)


class RowLoss:
    """A loss on all of a row, the student's and that of a teacher with another tokenizer, with parameters of its own.

    They are trained beside the student and are no part of it.
    """

    def init(self, key: Array, width: int, teacher_width: int) -> dict[str, Array]:
        """Its parameters, named by their letters."""
        raise NotImplementedError

    def __call__(self, projections: Any, own: Any, other: Any, **streaming: Any) -> Array:
        """fp32 [B, L], of two `dual_space.Side`."""
        raise NotImplementedError


def check_temperature(loss: Any) -> None:
    """Raise InputError where the temperature is not above 0."""
    if not loss.temperature > 0:
        raise InputError(f"{type(loss).__name__}.temperature is {loss.temperature}; it must be above 0")
