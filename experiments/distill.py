"""How close does a small model come to a larger one that teaches it, on text every Python installation has?

    jaxdistill run experiments/distill.py

About two minutes on two cores: the teacher is trained first, beside the student (runs/distill-teacher).
The file to copy first.
"""

import dataclasses

from jaxdistill import data
from jaxdistill.experiment import Experiment
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.losses.z_loss import ZLoss
from jaxdistill.models import ladder
from jaxdistill.optim import AdamW
from jaxdistill.teacher import Online

VOCABULARY = 512


def teacher() -> Experiment:
    """Two layers of width 64, trained on the data."""
    return Experiment(
        model=ladder.laptop(64, VOCABULARY),
        data=data.Tokens(data.Stdlib(), data.SentencePiece(VOCABULARY, characters=2_000_000), length=128),
        objective={"ce": Term(CrossEntropy()), "z": Term(ZLoss(), 1e-4)},
        steps=1000,
        batch=8,
        optim=AdamW(peak=4e-2, warmup=100),
        checkpoint_every=500,
    )


def config() -> Experiment:
    """One layer of width 32, trained on the teacher's distribution."""
    return dataclasses.replace(
        teacher(),
        model=ladder.laptop(32, VOCABULARY),
        objective={"kl": Term(ForwardKL(temperature=1.0)), "z": Term(ZLoss(), 1e-4)},
        teacher=Online(teacher()),
    )
