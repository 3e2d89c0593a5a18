"""What a distillation project pays for: the four scenarios of arXiv 2502.08606v2, Table 2, and what a token costs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.optimize

from jaxdistill.errors import InputError
from jaxdistill.scaling.flops import Family


@dataclasses.dataclass(frozen=True)
class ForwardCost:
    """Forward FLOPs per token of a family of models, F(N) = 2N + attention N^(2/3) + vocabulary N^(1/3).

    Models of one aspect ratio have layers * width proportional to N^(2/3) and width to N^(1/3), hence the powers
    (arXiv 2502.08606v2, Appendix H). Both zero is the usual F = 2N.
    """

    attention: float = 0.0
    vocabulary: float = 0.0

    @classmethod
    def of_family(cls, family: Family) -> "ForwardCost":
        """That of `flops.family_flops`."""
        attention = 2 * family.context * (family.aspect_ratio * family.omega**2) ** (-1 / 3)
        return cls(attention, 2 * family.vocab_size * (family.aspect_ratio / family.omega) ** (1 / 3))

    @classmethod
    def of_runs(cls, runs: Mapping[str, np.ndarray]) -> "ForwardCost":
        """That which comes nearest, in relative terms, to what the runs themselves cost; columns N, D and flops."""
        N, F = runs["N"], runs["flops"] / (3 * runs["D"])
        terms_R2 = np.stack([N ** (2 / 3), N ** (1 / 3)], axis=1)
        excess, _ = scipy.optimize.nnls(terms_R2 / F[:, None], 1 - 2 * N / F)
        return cls(*map(float, excess))

    def __call__(self, N: Any) -> Any:
        return 2 * N + self.attention * N ** (2 / 3) + self.vocabulary * N ** (1 / 3)

    def elasticity(self, N: Any) -> Any:
        """d log F / d log N: 1 for large models, towards 1/3 where the output layer is most of the work."""
        return (2 * N + self.attention * N ** (2 / 3) * 2 / 3 + self.vocabulary * N ** (1 / 3) / 3) / self(N)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Which costs of the teacher count: FLOPs = 3 F(N_S) D_S + F(N_T) (delta_logits D_S + delta_pretraining 3 D_T).

    Attributes:
      name: on the command line.
      meaning: in words.
      delta_logits: share of the teacher's forward passes over the student's tokens that one student pays for.
      delta_pretraining: share of the teacher's training that one student pays for.
    """

    name: str
    meaning: str
    delta_logits: float
    delta_pretraining: float

    def shared_by(self, students: int) -> "Scenario":
        """The scenario of one of several equal students: one teacher, and one cache of its logits, serve them all."""
        if students < 1:
            raise InputError(f"{students} students cannot share a teacher; give 1 or more")
        return dataclasses.replace(
            self, delta_logits=self.delta_logits / students, delta_pretraining=self.delta_pretraining / students
        )

    def student_tokens(self, compute: Any, F_S: Any, F_T: Any, D_T: Any) -> Any:
        """D_S that is left for the student, negative where the teacher's training alone costs more (Eq. 27).

        Args:
          compute: FLOPs of the whole project, for one student.
          F_S, F_T: forward FLOPs per token.
          D_T: tokens the teacher is trained on.
        """
        return (compute - self.delta_pretraining * 3 * F_T * D_T) / (3 * F_S + self.delta_logits * F_T)

    def shares(self, F_S: float, D_S: float, F_T: float, D_T: float) -> tuple[float, float, float]:
        """Which shares of the FLOPs go to student training, teacher logits and teacher training."""
        costs = np.array([3 * F_S * D_S, self.delta_logits * F_T * D_S, self.delta_pretraining * 3 * F_T * D_T])
        student, logits, training = (costs / costs.sum()).tolist()
        return student, logits, training


BEST_CASE = Scenario("best-case", "any teacher exists and its logits cost nothing", 0, 0)
TEACHER_INFERENCE = Scenario("teacher-inference", "the teacher exists; its logits are paid for", 1, 0)
TEACHER_PRETRAINING = Scenario("teacher-pretraining", "the teacher is trained for this; its logits cost nothing", 0, 1)
BOTH = Scenario("both", "the teacher is trained for this student alone, and its logits are paid for", 1, 1)
SCENARIOS = (BEST_CASE, TEACHER_INFERENCE, TEACHER_PRETRAINING, BOTH)


def named(name: str) -> Scenario:
    """The scenario of this name.

    Raises:
      InputError: there is none.
    """
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    raise InputError(f"there is no scenario {name!r}; the four are {', '.join(s.name for s in SCENARIOS)}")
