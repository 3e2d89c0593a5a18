"""What a run costs, in floating-point operations (a multiply-add counts two), after arXiv 2502.08606v2, Appendix H.

Attention is counted causally: a query meets half of the context on average, so a layer's logits and values cost
context * width each, and not twice that. The backward pass costs two forward passes. At small N the attention and the
output layer are most of the work: the usual 6 N D misses 40 % at 100M parameters, and nearly everything at 1M.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """Models that differ in size alone: each has the same shape, context and vocabulary.

    Attributes:
      context: tokens in a sequence.
      vocab_size: rows of the output layer.
      aspect_ratio: width / layers.
      omega: weights of one layer / width^2: 4 for attention and 3 * 8/3 for a gated MLP of 8/3 the width.
    """

    context: int
    vocab_size: int
    aspect_ratio: float = 128.0
    omega: float = 12.0


BUSBRIDGE_FAMILY = Family(context=4096, vocab_size=32768)
"""The 33 models of arXiv 2502.08606v2 (the text once says 32 168 words; its own table needs 32 768)."""


def forward_flops(N: Any, layers: Any, width: Any, context: int, vocab_size: int) -> Any:
    """Forward FLOPs per token at `N` non-embedding parameters: 2N + 2 layers context width + 2 V width."""
    return 2 * N + 2 * layers * context * width + 2 * vocab_size * width


def family_flops(N: Any, family: Family) -> Any:
    """F(N), the same in closed form where only `N` is known: 2N (1 + s1 context / N^(1/3) + s2 V / N^(2/3)).

    It follows from N = omega layers width^2 and width = aspect_ratio * layers.
    """
    s1 = (family.aspect_ratio * family.omega**2) ** (-1 / 3)
    s2 = (family.aspect_ratio / family.omega) ** (1 / 3)
    return 2 * N * (1 + s1 * family.context / N ** (1 / 3) + s2 * family.vocab_size / N ** (2 / 3))


def training_flops(forward: Any, tokens: Any) -> Any:
    """FLOPs of training on `tokens` tokens, 3 F D: the budget C_S of a student when its teacher is not counted."""
    return 3 * forward * tokens


def student_flops(N_S: Any, D_S: Any, family: Family) -> Any:
    """3 F(N_S) D_S, the compute an IsoFLOP profile of students holds fixed."""
    return training_flops(family_flops(N_S, family), D_S)


def distillation_flops(
    forward_S: Any, D_S: Any, forward_T: Any, D_T: Any, *, delta_logits: float, delta_pretraining: float
) -> Any:
    """FLOPs of student and teacher together: 3 F_S D_S + F_T (delta_logits D_S + delta_pretraining 3 D_T) (Eq. 9).

    Args:
      forward_S: forward FLOPs per token of the student.
      D_S: tokens of distillation.
      forward_T: forward FLOPs per token of the teacher.
      D_T: tokens the teacher was trained on.
      delta_logits: share of the teacher's forward passes this student pays for: 1 online, 0 from a cache paid
        elsewhere.
      delta_pretraining: share of the teacher's training this student pays for: 1 if made for it alone, 0 if it existed.
    """
    teacher = forward_T * (delta_logits * D_S + delta_pretraining * 3 * D_T)
    return training_flops(forward_S, D_S) + teacher
