"""Trains 20 steps in many ways on fake CPU devices, and on one of them, and prints the losses.

test_equal_losses runs it in a process of its own, since the number of devices is fixed when JAX starts; all cases share
the process, and what one device gives is computed once for each kind.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill import align, data, rundir
from jaxdistill.across import Marks
from jaxdistill.apart import Apart
from jaxdistill.cache.reader import Cache
from jaxdistill.data import pairs
from jaxdistill.experiment import Experiment, load_module
from jaxdistill.losses import methods
from jaxdistill.losses.chunks import ChunkKL
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.models.design import Design, Experts
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.models.variant import Variant
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.program import build
from jaxdistill.teacher import TEACHER, Across, Cached, Disjoint, Draws, Online, Top

STEPS = 20
STUDENT = Config(vocab_size=257, num_layers=2, width=32, num_heads=4, head_size=8, mlp_width=64)  # V padded to 384
TEACHER_MODEL = dataclasses.replace(STUDENT, width=64)
EXPERTS = Variant(**dataclasses.asdict(STUDENT), design=Design(mlp=Experts(num=4, active=2)))
WORDS = data.SentencePiece(300, characters=20_000)


@dataclasses.dataclass(frozen=True)
class Case:
    """One training: which loss, on which mesh and tables, with a teacher where.

    With the placement "apart" the teacher has the last four devices, in a mesh of its own.
    """

    kind: str
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    table: str = "axes"
    teacher_table: str | None = None
    placement: str = "online"
    of_teacher: dict[str, int] = dataclasses.field(default_factory=dict)
    accumulate: int = 1
    model: str = "dense"
    validate: bool = False


def experiment_of(case: Case, tiny: Any) -> Experiment:
    """The experiment of a case; the teachers named in it are never looked for."""
    table = case.teacher_table
    objective, teacher = {
        "ce": lambda: ({"ce": Term(CrossEntropy())}, None),
        "kl": lambda: (
            {"ce": Term(CrossEntropy(), 0.3), "kl": Term(ForwardKL(2.0))},
            Online("teacher", table=table),
        ),
        "top-k": lambda: (methods.top_k("bucket"), Online("teacher", Top(8), table=table)),
        "sampled": lambda: (methods.random_sampling_kd(), Online("teacher", Draws(12), table=table)),
        "alm": lambda: (
            {"alm": Term(ChunkKL()), "ce": Term(CrossEntropy(), 0.1)},
            Across("teacher", table=table, length=24),
        ),
    }[case.kind]()
    if case.placement == "cached":
        teacher = Cached("cache")
    if case.placement == "apart":
        teacher = dataclasses.replace(teacher, placement=Disjoint(4, Mesh(**case.of_teacher)))
    return dataclasses.replace(
        tiny.supervised(),
        model=EXPERTS if case.model == "experts" else STUDENT,
        objective=objective,
        teacher=teacher,
        mesh=Mesh(**case.mesh),
        table=case.table,
        batch=16,
        accumulate=case.accumulate,
    )


def random_params(config: Config, seed: int) -> Any:
    """Parameters that no program has to be compiled for."""
    generator, shapes = np.random.default_rng(seed), jax.eval_shape(Transformer(config).init, jax.random.key(0))

    def draw(path, x):
        name = path[-1].key
        if "norm" in name:
            return np.ones(x.shape, np.float32)
        return (generator.normal(size=x.shape) / (1 if name == "embed_VD" else x.shape[-2] ** 0.5)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def paired(tokens: data.Tokens, length: int):
    """(dataset with the text in words beside it, the teacher's model, what the ids of teacher and student are)."""
    dataset, source = data.prepare(tokens, quiet=True), tokens.source
    words = WORDS.build(source, source.fingerprint(), None, True)
    marks = [
        Marks.of(align.Spelling.of(each.token_bytes.of_id, {"eos": each.eos_id})) for each in (words, dataset.tokenizer)
    ]
    model = dataclasses.replace(TEACHER_MODEL, vocab_size=words.vocab_size)
    return pairs.pair(tokens, dataset, words, length, quiet=True), model, tuple(marks)


def losses(case: Case, tiny: Any, caches: dict[str, str], devices: Any = None) -> list[float]:
    """The loss of every step, from one start and order of data, and, where asked, the validation loss after them."""
    experiment = experiment_of(case, tiny)
    (_, mesh), dataset = experiment.meshes(devices), data.prepare(experiment.data, quiet=True)
    teacher, marks, attach = TEACHER_MODEL, None, lambda batch: batch
    if isinstance(experiment.teacher, Across):
        dataset, teacher, marks = paired(experiment.data, experiment.teacher.length)
    if case.placement == "cached":
        directory = Path(caches[case.kind])
        attach = Cache.open(directory, rundir.read_result(directory)).attach
    teachers, params = {}, {}
    if isinstance(experiment.teacher, Online | Across):
        teachers = {TEACHER: Transformer(teacher)}
        params = {TEACHER: random_params(teacher, 1)}
        params = jax.device_put(params, rules.shardings(params, mesh, rules.named(experiment.teacher_table)))
    batches = (attach(dataset.batch(experiment.batch, 0, step)) for step in range(STEPS))
    if experiment.placement is None:
        program = build(experiment, teachers, devices, marks=marks)
        placed = map(program.place, batches)
    else:
        apart = Apart(experiment, teachers.pop(TEACHER), params.pop(TEACHER), devices=devices, marks=marks)
        program, placed = build(experiment, devices=devices, marks=marks), apart.training(batches, 0)
    places = jax.tree.map(lambda x: x.sharding, program.abstract.params)
    state = program.begin(jax.device_put(random_params(experiment.model, 2), places))
    found = []
    for step, batch in enumerate(placed):
        coef = {name: np.float32(term.at(step, STEPS)) for name, term in experiment.objective.items()}
        state, metrics = program.step(state, params, batch, experiment.optim.rates(step, STEPS), coef)
        found.append(float(metrics["loss"]))
    if not case.validate:
        return found
    sums = program.evaluate(state.params, params, program.place(next(dataset.validation(experiment.batch))))
    return [*found, float(sums["cross_entropy"]) / float(sums["tokens"])]


def main(tiny: str, cases: str, caches: str) -> None:
    module, made, alone = load_module(tiny), json.loads(caches), {}
    for name, fields in json.loads(cases).items():
        case = Case(**fields)
        placement = "online" if case.placement == "apart" else case.placement
        plain = Case(case.kind, {}, placement=placement, model=case.model, validate=True)
        key = (case.kind, placement, case.model)
        if key not in alone:
            alone[key] = losses(plain, module, made, jax.devices()[:1])
        found = losses(case, module, made)
        print(json.dumps({"case": name, "losses": found, "alone": alone[key][: len(found)]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
