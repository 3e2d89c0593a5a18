"""Trains 20 steps on a given mesh of fake CPU devices and prints the losses.

test_equal_losses runs it in a process of its own, since the number of devices is fixed when JAX starts.
"""

import dataclasses
import json
import sys

import jax
import numpy as np

from jaxdistill import data
from jaxdistill.experiment import load_module
from jaxdistill.models import ladder
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.program import build, make_model


def losses(experiment, kind: str) -> list[float]:
    """The loss of every step, and the last validation sums, from one initialisation and order of data."""
    teachers, teacher_params = {}, {}
    if kind == "distilled":
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
        batch = program.place(dataset.batch(experiment.batch, 0, step))
        state, metrics = program.step(state, teacher_params, batch, experiment.optim.rates(step, 20), coef)
        found.append(float(metrics["loss"]))
    sums = program.evaluate(state.params, teacher_params, program.place(next(dataset.validation(experiment.batch))))
    return found + [float(sums["cross_entropy"]) / float(sums["tokens"])]


if __name__ == "__main__":
    tiny, kind, mesh, accumulate = sys.argv[1:]
    module = load_module(tiny)
    experiment = module.supervised() if kind == "supervised" else module.config()
    experiment = dataclasses.replace(
        experiment,
        model=ladder.laptop(32, 257),  # two heads, and a vocabulary padded to 384
        mesh=Mesh(**json.loads(mesh)),
        batch=16,
        accumulate=int(accumulate),
    )
    print(json.dumps({"devices": jax.device_count(), "losses": losses(experiment, kind)}))
