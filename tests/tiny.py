"""The smallest real experiment: a student and its teacher on a synthetic source, seconds to train."""

import dataclasses

from jaxdistill import data
from jaxdistill.experiment import Experiment
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.models import ladder
from jaxdistill.optim import AdamW
from jaxdistill.teacher import Online


def supervised() -> Experiment:
    source = data.Markov(alphabet=16, order=1, concentration=0.3, seed=0, num_documents=100, length=500)
    return Experiment(
        model=ladder.laptop(32, 257, vocab_multiple=1),
        data=data.Tokens(source, data.Bytes(), length=32, validation_windows=64),
        objective={"ce": Term(CrossEntropy())},
        steps=40,
        batch=8,
        optim=AdamW(warmup=5),
        checkpoint_every=10,
    )


def config() -> Experiment:
    return dataclasses.replace(
        supervised(),
        model=ladder.laptop(16, 257, vocab_multiple=1),
        objective={"kl": Term(ForwardKL())},
        teacher=Online(supervised()),
    )


def sweep() -> dict[str, Experiment]:
    return {"teacher": supervised()} | {f"student-{seed}": dataclasses.replace(config(), seed=seed) for seed in (1, 2)}
