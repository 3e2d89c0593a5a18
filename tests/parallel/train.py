"""Trains in many ways on fake CPU devices, and on one of them, and prints the losses.

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
from jaxdistill.data import Tokenizer, pairs
from jaxdistill.experiment import Experiment, load_module
from jaxdistill.losses import methods
from jaxdistill.losses.chunks import ChunkKL
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.dual_space import DualSpace
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.hidden import Layers
from jaxdistill.losses.objective import Term
from jaxdistill.losses.paired import Gold, PairedSortedL1
from jaxdistill.losses.states import ChannelSquare
from jaxdistill.models import subwords
from jaxdistill.models.design import Design, Experts
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.models.variant import Variant
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.program import build
from jaxdistill.start import LoRA, Transplanted, divide
from jaxdistill.teacher import BASE, TEACHER, Across, Cached, Disjoint, Draws, Online, Top

STUDENT = Config(vocab_size=257, num_layers=2, width=32, num_heads=4, head_size=8, mlp_width=64)  # V padded to 384
TEACHER_MODEL = dataclasses.replace(STUDENT, width=64)
EXPERTS = Variant(**dataclasses.asdict(STUDENT), design=Design(mlp=Experts(num=4, active=2)))
WORDS = data.SentencePiece(300, characters=20_000)
OF_WORDS = dataclasses.replace(STUDENT, vocab_size=300)
PARTS = LoRA(Transplanted("source", untie=True, subwords=4), rank=4)  # what is trained is a part of the model
ALONGSIDE = {  # all that looks at a teacher with another tokenizer beside its chunks
    **methods.mined(),
    "hidden": Term(Layers(ChannelSquare(), ((-1, -1),))),
    "uld": Term(PairedSortedL1("begin")),
    "gold": Term(Gold()),
    "dskd": Term(DualSpace()),
}


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
    steps: int = 20


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
        "alongside": lambda: (ALONGSIDE, Across("teacher", table=table, length=24, match="nearest")),
        "parts": lambda: ({"ce": Term(CrossEntropy())}, None),
    }[case.kind]()
    if case.placement == "cached":
        teacher = Cached("cache")
    if case.placement == "apart":
        teacher = dataclasses.replace(teacher, placement=Disjoint(4, Mesh(**case.of_teacher)))
    start = PARTS if case.kind == "parts" else None
    model = EXPERTS if case.model == "experts" else STUDENT
    return dataclasses.replace(
        tiny.supervised(),
        model=model if start is None else start.of.config(OF_WORDS, model.vocab_size),
        start=start,
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
        if "norm" in name or x.ndim == 1:
            return np.ones(x.shape, np.float32)
        return (generator.normal(size=x.shape) / (1 if name == "embed_VD" else x.shape[-2] ** 0.5)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def words_of(source: data.Source) -> Tokenizer:
    return WORDS.build(source, source.fingerprint(), None, True)


@functools.cache
def paired(tokens: data.Tokens, length: int, match: str | None):
    """(dataset with the text in words beside it, the teacher's model, what the ids of teacher and student are)."""
    dataset, words = data.prepare(tokens, quiet=True), words_of(tokens.source)
    tables = [(each.token_bytes.of_id, {"eos": each.eos_id}) for each in (words, dataset.tokenizer)]
    match_V = align.nearest(*tables[1], *tables[0]) if match else None
    marks = Marks.of(align.Spelling.of(*tables[0])), Marks.of(align.Spelling.of(*tables[1]), match_V)
    model = OF_WORDS if match else dataclasses.replace(TEACHER_MODEL, vocab_size=words.vocab_size)
    return pairs.pair(tokens, dataset, words, length, quiet=True), model, marks


def divided(experiment: Experiment) -> tuple[dict, dict]:
    """The parameters that are trained, and those that are not: all, and none, unless the case says otherwise."""
    params = random_params(experiment.model, 2)
    if experiment.start is None:
        return params, {}
    words = words_of(experiment.data.source).token_bytes.of_id
    embed_VD = random_params(OF_WORDS, 1)["embed_VD"]
    table = subwords.table(words, embed_VD, experiment.model.design.subwords.longest)
    return divide(experiment.start, params | {subwords.NAME: table}, jax.random.key(0))


def losses(case: Case, tiny: Any, caches: dict[str, str], devices: Any = None) -> dict[str, list[float]]:
    """The loss and each term at every step, from one start and order of data; where asked, the validation loss after
    them."""
    experiment = experiment_of(case, tiny)
    (own, mesh), dataset = experiment.meshes(devices), data.prepare(experiment.data, quiet=True)
    teacher, marks, attach = TEACHER_MODEL, None, lambda batch: batch
    if isinstance(experiment.teacher, Across):
        dataset, teacher, marks = paired(experiment.data, experiment.teacher.length, experiment.teacher.match)
    if case.placement == "cached":
        directory = Path(caches[case.kind])
        attach = Cache.open(directory, rundir.read_result(directory)).attach
    teachers, params = {}, {}
    if isinstance(experiment.teacher, Online | Across):
        teachers = {TEACHER: Transformer(teacher)}
        params = {TEACHER: random_params(teacher, 1)}
        params = jax.device_put(params, rules.shardings(params, mesh, rules.named(experiment.teacher_table)))
    batches = (attach(dataset.batch(experiment.batch, 0, step)) for step in range(case.steps))
    if experiment.placement is None:
        program = build(experiment, teachers, devices, marks=marks)
        placed = map(program.place, batches)
    else:
        apart = Apart(experiment, teachers.pop(TEACHER), params.pop(TEACHER), devices=devices, marks=marks)
        program, placed = build(experiment, devices=devices, marks=marks), apart.training(batches, 0)
    trained, rest = divided(experiment)
    if rest:
        params[BASE] = jax.device_put(rest, rules.shardings(rest, own, rules.named(experiment.table)))
    places = {name: jax.tree.map(lambda x: x.sharding, program.abstract.params[name]) for name in trained}
    state = program.begin(jax.device_put(trained, places))
    found = {name: [] for name in ("loss", *experiment.objective)}
    for step, batch in enumerate(placed):
        coef = {name: np.float32(term.at(step, case.steps)) for name, term in experiment.objective.items()}
        state, metrics = program.step(state, params, batch, experiment.optim.rates(step, case.steps), coef)
        for name, values in found.items():
            values.append(float(metrics[name]))
    if not case.validate:
        return found
    sums = program.evaluate(state.params, params, program.place(next(dataset.validation(experiment.batch))))
    return found | {"validation": [float(sums["cross_entropy"]) / float(sums["tokens"])]}


def on_one(case: Case) -> tuple[str, str, str]:
    """What decides the losses on one device, where the teacher is too: kind, placement, model."""
    return case.kind, "online" if case.placement == "apart" else case.placement, case.model


def main(tiny: str, cases: str, caches: str) -> None:
    module, made, alone = load_module(tiny), json.loads(caches), {}
    wanted = {name: Case(**fields) for name, fields in json.loads(cases).items()}
    validated = {on_one(case) for case in wanted.values() if case.validate}
    for name, case in wanted.items():
        if (key := on_one(case)) not in alone:
            kind, placement, model = key
            plain = Case(kind, placement=placement, model=model, validate=key in validated, steps=case.steps)
            alone[key] = losses(plain, module, made, jax.devices()[:1])
        found = losses(case, module, made)
        one = {value: alone[key][value] for value in found}
        print(json.dumps({"case": name, "found": found, "alone": one}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
