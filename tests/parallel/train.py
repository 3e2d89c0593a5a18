"""Trains 20 steps on a given mesh of fake CPU devices and prints the losses.

test_equal_losses runs it in a process of its own, since the number of devices is fixed when JAX starts.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

from jaxdistill import data, rundir
from jaxdistill.cache.reader import Cache
from jaxdistill.experiment import load_module
from jaxdistill.losses import methods
from jaxdistill.models import ladder
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.program import build, make_model
from jaxdistill.teacher import Draws, Online, Top


def losses(experiment, cache: str) -> list[float]:
    """The loss of every step, and the last validation sums, from one initialisation and order of data."""
    teachers, teacher_params, attach = {}, {}, None
    if cache:
        attach = Cache.open(Path(cache), rundir.read_result(Path(cache))).attach
    elif experiment.teacher is not None:
        teacher = make_model(dataclasses.replace(experiment, model=ladder.laptop(64, 257)))
        teachers, teacher_params = {"teacher": teacher}, {"teacher": teacher.init(jax.random.key(99))}
    program = build(experiment, teachers)
    dataset = data.prepare(experiment.data, quiet=True)
    if teachers:
        mesh = experiment.mesh.build()
        teacher_params = jax.device_put(teacher_params, rules.shardings(teacher_params, mesh))
    state = program.init(jax.random.key(0))
    found = []
    for step in range(20):
        coef = {name: np.float32(term.at(step, 20)) for name, term in experiment.objective.items()}
        batch = dataset.batch(experiment.batch, 0, step)
        batch = program.place(batch if attach is None else attach(batch))
        state, metrics = program.step(state, teacher_params, batch, experiment.optim.rates(step, 20), coef)
        found.append(float(metrics["loss"]))
    sums = program.evaluate(state.params, teacher_params, program.place(next(dataset.validation(experiment.batch))))
    return found + [float(sums["cross_entropy"]) / float(sums["tokens"])]


def kept(tiny, objective, keep):
    """A student of what is kept of its teacher."""
    student = tiny.config()
    return dataclasses.replace(student, objective=objective, teacher=Online(tiny.supervised(), keep))


KINDS = {
    "supervised": lambda tiny: tiny.supervised(),
    "distilled": lambda tiny: tiny.config(),
    "top-k": lambda tiny: kept(tiny, methods.top_k("bucket"), Top(8)),
    "draws": lambda tiny: kept(tiny, methods.random_sampling_kd(), Draws(12)),
}


if __name__ == "__main__":
    tiny, kind, mesh, accumulate, cache = sys.argv[1:]
    experiment = KINDS[kind](load_module(tiny))
    experiment = dataclasses.replace(
        experiment,
        model=ladder.laptop(32, 257),  # two heads, and a vocabulary padded to 384
        mesh=Mesh(**json.loads(mesh)),
        batch=16,
        accumulate=int(accumulate),
    )
    print(json.dumps({"devices": jax.device_count(), "losses": losses(experiment, cache)}))
