"""Trains students on four of eight fake devices with a teacher on the other four, and on one with the teacher beside.

test_apart runs it in a process of its own, since the number of devices is fixed when JAX starts.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill import align, data, metrics
from jaxdistill.across import Marks
from jaxdistill.apart import Apart
from jaxdistill.data import pairs
from jaxdistill.experiment import Experiment
from jaxdistill.losses import methods
from jaxdistill.losses.chunks import ChunkKL
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.objective import Term
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.program import Program, build
from jaxdistill.run import run
from jaxdistill.teacher import TEACHER, Across, Disjoint, Draws, Online, Top

STEPS = 20
SOURCE = data.Markov(alphabet=16, order=1, concentration=0.3, seed=0, num_documents=100, length=500)
MODEL = Config(vocab_size=257, num_layers=2, width=32, num_heads=2, head_size=16, mlp_width=64)
WORDS = data.SentencePiece(300, characters=20_000)
PLAIN = Experiment(
    model=MODEL,
    data=data.Tokens(SOURCE, data.Bytes(), length=32, validation_windows=40),
    objective={"ce": Term(CrossEntropy())},
    steps=STEPS,
    batch=16,
    log_every=1,
)
DRAWS = dataclasses.replace(
    PLAIN, objective=methods.random_sampling_kd(), teacher=Online("teacher", Draws(12), quantised="int8")
)
TOP_K = dataclasses.replace(PLAIN, objective=methods.top_k("bucket"), teacher=Online("teacher", Top(8)))
CHUNKS = dataclasses.replace(
    PLAIN, objective={"alm": Term(ChunkKL()), "ce": Term(CrossEntropy(), 0.1)}, teacher=Across("teacher", length=24)
)


def apart(experiment: Experiment, mesh: Mesh, of_teacher: Mesh, **change: Any) -> Experiment:
    """The same with the teacher on four devices of its own."""
    teacher = dataclasses.replace(experiment.teacher, placement=Disjoint(4, of_teacher))
    return dataclasses.replace(experiment, teacher=teacher, mesh=mesh, **change)


def random_params(config: Config, seed: int) -> Any:
    """Parameters that no program has to be compiled for."""
    draw, shapes = np.random.default_rng(seed), jax.eval_shape(Transformer(config).init, jax.random.key(0))
    spread = lambda x: 1 / np.sqrt(x.shape[-2]) if x.ndim > 1 else 1  # noqa: E731
    return jax.tree.map(lambda x: (spread(x) * draw.normal(size=x.shape)).astype(np.float32), shapes)


def material(experiment: Experiment) -> tuple[data.Dataset, Config, Any]:
    """(the data, the shape of the teacher, what the ids of both are)."""
    dataset = data.prepare(experiment.data, quiet=True)
    if not isinstance(experiment.teacher, Across):
        return dataset, dataclasses.replace(MODEL, width=64), None
    words = WORDS.build(SOURCE, SOURCE.fingerprint(), None, True)
    marks = Marks.of(spelling(words)), Marks.of(spelling(dataset.tokenizer))
    dataset = pairs.pair(experiment.data, dataset, words, experiment.teacher.length, quiet=True)
    return dataset, dataclasses.replace(MODEL, vocab_size=words.vocab_size), marks


def spelling(tokenizer: data.Tokenizer) -> align.Spelling:
    return align.Spelling.of(tokenizer.token_bytes.of_id, {"eos": tokenizer.eos_id})


def losses(experiment: Experiment, devices: Any) -> list[float]:
    """The loss of every step, from one start and order of data."""
    dataset, config, marks = material(experiment)
    params = random_params(config, 1)
    params = jax.device_put(params, rules.shardings(params, experiment.meshes(devices)[1]))
    batches = [dataset.batch(experiment.batch, 0, step) for step in range(STEPS)]
    if experiment.placement is None:
        program = build(experiment, {TEACHER: Transformer(config)}, devices, marks=marks)
        return train(experiment, program, {TEACHER: params}, map(program.place, batches))
    teacher = Apart(experiment, Transformer(config), params, devices=devices, marks=marks)
    program, order = build(experiment, devices=devices, validation=teacher.validation, marks=marks), []
    told = noted("step", order, teacher.training(noted("target", order, batches), 0))
    with unread():
        first = next(told)
    check_places(params, first, devices)
    found = train(experiment, program, {}, itertools.chain([first], told))
    assert order[:5] == [("target", 0), ("target", 1), ("step", 0), ("target", 2), ("step", 1)]
    assert order[-2:] == [("step", STEPS - 2), ("step", STEPS - 1)]
    (again,) = teacher.training(batches[:1], 0)  # as after a restart
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True))
    return found


def train(experiment: Experiment, program: Program, frozen: Any, batches: Any) -> list[float]:
    places = jax.tree.map(lambda x: x.sharding, program.abstract.params)
    state, found = program.begin(jax.device_put(random_params(MODEL, 2), places)), []
    devices = {device for x in jax.tree.leaves(places) for device in x.device_set}
    for step, batch in enumerate(batches):
        coef = {name: np.float32(term.at(step, STEPS)) for name, term in experiment.objective.items()}
        state, values = program.step(state, frozen, batch, experiment.optim.rates(step, STEPS), coef)
        found.append(values["loss"])
    assert all(x.sharding.device_set == devices for x in jax.tree.leaves(state))
    return [float(loss) for loss in found]


def noted(what: str, order: list[tuple[str, int]], items: Any) -> Any:
    """The same items; notes when each is asked for, or given."""
    for number, item in enumerate(items):
        order.append((what, number))
        yield item


@contextlib.contextmanager
def unread():
    """Inside, nothing that a device has may be read on the host, as `device_put` would to divide it anew."""

    def refuse(self):
        raise AssertionError("a device was waited for")

    kind = type(jax.numpy.zeros(1))
    whole, kind._value = kind._value, property(refuse)
    try:
        yield
    finally:
        kind._value = whole


def check_places(params: Any, told: Any, devices: Any) -> None:
    """The teacher's parameters lie on its devices alone, what it says on the student's alone."""
    assert all(x.sharding.device_set == set(devices[4:]) for x in jax.tree.leaves(params))
    assert all(x.sharding.device_set == set(devices[:4]) for x in jax.tree.leaves(told))


def main(teacher: str, out: str) -> None:
    """Prints by kind the losses beside and apart, and of a whole run with the teacher of a directory its result."""
    one, eight = jax.devices()[:1], jax.devices()
    cases = {
        "top-k": (TOP_K, apart(TOP_K, Mesh(tensor=2), Mesh())),  # rows on 4 devices go to 2
        "chunks": (CHUNKS, apart(CHUNKS, Mesh(), Mesh(tensor=2), accumulate=2)),  # rows on 2 devices go to 4
    }
    for kind, (beside, own) in cases.items():
        print(json.dumps({kind: (losses(beside, one), losses(own, eight))}), flush=True)
    whole = apart(dataclasses.replace(DRAWS, teacher=dataclasses.replace(DRAWS.teacher, run=teacher)), Mesh(), Mesh())
    result = run(whole, out, quiet=True)
    rows = metrics.read(Path(out) / "metrics.jsonl")
    print(json.dumps({"run": ([row["loss"] for row in rows if "loss" in row], result)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
