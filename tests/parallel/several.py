"""The smallest experiments for several processes: a step takes PACE seconds more, so that they are met midway."""

import dataclasses
import os
import time

from jaxdistill import data
from jaxdistill.experiment import Experiment
from jaxdistill.losses import methods
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.models import ladder
from jaxdistill.optim import AdamW
from jaxdistill.teacher import Cached, Draws, Online


@dataclasses.dataclass(frozen=True)
class Paced:
    """A coefficient of 1, after a while."""

    def __call__(self, step: int, steps: int) -> float:
        time.sleep(float(os.environ.get("PACE", "0")))
        return 1.0


def teacher() -> Experiment:
    source = data.Markov(alphabet=16, order=1, concentration=0.3, seed=0, num_documents=100, length=500)
    return Experiment(
        model=ladder.laptop(32, 257, vocab_multiple=1),
        data=data.Tokens(source, data.Bytes(), length=32, validation_windows=20),
        objective={"ce": Term(CrossEntropy(), coef=Paced())},
        steps=40,
        batch=8,
        optim=AdamW(warmup=5),
        log_every=1,
        checkpoint_every=20,
    )


def config(preset: str = "online") -> Experiment:
    """A student of a live teacher, or of what was kept of one."""
    kinds = {
        "online": (Online(teacher()), {"kl": Term(ForwardKL())}),
        "cached": (Cached(teacher(), Draws(12)), methods.random_sampling_kd()),
    }
    source, objective = kinds[preset]
    paced = {name: dataclasses.replace(term, coef=Paced()) for name, term in objective.items()}
    model = ladder.laptop(16, 257, vocab_multiple=1)
    return dataclasses.replace(teacher(), model=model, objective=paced, teacher=source)
