"""How much of a teacher's distribution does a student need: its top K, random draws, or all of it?

    jaxdistill sweep experiments/sparse_kd.py

One teacher and 12 students of one size that see the same tokens, about ten minutes on two cores. The comparison of
"Sparse Logit Sampling" (arXiv 2503.16870, tables 1 to 6): a student of raw or renormalised top-K targets puts the mass
of the tail on the head and ends below plain training while K is small; random draws of as few entries do not.
"""

import dataclasses

from jaxdistill import data
from jaxdistill.experiment import Experiment
from jaxdistill.losses import methods
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.models import ladder
from jaxdistill.optim import AdamW
from jaxdistill.teacher import Draws, Online, Top

VOCABULARY = 512


def teacher() -> Experiment:
    """Two layers of width 64, trained on the data."""
    return Experiment(
        model=ladder.laptop(64, VOCABULARY),
        data=data.Tokens(
            data.Stdlib(), data.SentencePiece(VOCABULARY, characters=2_000_000), length=128, validation_windows=512
        ),
        objective={"ce": Term(CrossEntropy())},
        steps=2000,
        batch=8,
        optim=AdamW(peak=4e-2, warmup=100),
        checkpoint_every=500,
    )


def student(objective: dict[str, Term], keep: Top | Draws | None = None) -> Experiment:
    """Width 32, and what reaches it of the teacher."""
    model = ladder.laptop(32, VOCABULARY)
    return dataclasses.replace(
        teacher(), model=model, steps=1500, objective=objective, teacher=Online(teacher(), keep=keep), protocol="sparse"
    )


def sweep() -> dict[str, Experiment]:
    """The ends, cross-entropy and all of the teacher, and what lies between."""
    runs = {
        "teacher": teacher(),
        "ce": dataclasses.replace(student({"ce": Term(CrossEntropy())}), teacher=None),
        "full": student({"kl": Term(ForwardKL())}),
    }
    for k in (3, 12, 50):
        runs[f"top{k}-renormalised"] = student(methods.top_k("renormalised"), Top(k))
        runs[f"top{k}-bucket"] = student(methods.top_k("bucket"), Top(k))
    runs["top12-label"] = student(methods.top_k("label"), Top(12))
    for rounds in (3, 12):
        runs[f"draws{rounds}"] = student(methods.random_sampling_kd(), Draws(rounds))
    runs["draws12-systematic"] = student(methods.random_sampling_kd(), Draws(12, "systematic"))
    return runs


def config() -> Experiment:
    """Twelve draws a token."""
    return sweep()["draws12"]
