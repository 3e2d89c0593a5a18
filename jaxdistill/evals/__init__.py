"""Evaluation: of a run while it trains, and of what it has become.

objective, evaluate   what a run measures as it goes
per_token             what each token tells of a model, and of a student beside its teacher
make_sums, score      their means over a corpus, with reliability diagrams

Beside these: `texts` (what is scored), `continuations` and `tasks` (files of questions), `harness` (tasks of lm-eval),
`gradients` (two objectives compared), `tables`, `figures` and `page` (results to look at).
"""

from jaxdistill.evals.calibration import Reliability
from jaxdistill.evals.per_token import per_token
from jaxdistill.evals.scores import Scores, make_sums, score
from jaxdistill.evals.validation import bits_per_byte, evaluate, objective

__all__ = [
    "Reliability",
    "Scores",
    "bits_per_byte",
    "evaluate",
    "make_sums",
    "objective",
    "per_token",
    "score",
]
