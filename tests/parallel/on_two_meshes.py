"""Students whose teacher has devices of its own, and the same ones beside it.

test_apart runs the first here, in a process of eight fake devices, and the second in its own, which has one.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax

from jaxdistill import data, frozen, metrics
from jaxdistill.apart import Apart
from jaxdistill.experiment import Experiment
from jaxdistill.losses import methods
from jaxdistill.losses.chunks import ChunkKL
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.objective import Term
from jaxdistill.models import ladder
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.program import build
from jaxdistill.run import run
from jaxdistill.teacher import Across, Disjoint, Draws, Online, Top

STEPS = 20
SOURCE = data.Markov(alphabet=16, order=1, concentration=0.3, seed=0, num_documents=100, length=500)


def trained(tokenizer, vocab_size: int, steps: int) -> Experiment:
    return Experiment(
        model=ladder.laptop(32, vocab_size, vocab_multiple=64),
        data=data.Tokens(SOURCE, tokenizer, length=32, validation_windows=40),
        objective={"ce": Term(CrossEntropy())},
        steps=steps,
        batch=16,
    )


TEACHERS = {"bytes": trained(data.Bytes(), 257, 60), "words": trained(data.SentencePiece(300, characters=20_000), 300, 60)}
ALM = {"alm": Term(ChunkKL()), "ce": Term(CrossEntropy(), 0.1)}
STUDENTS = {
    "top-k": (methods.top_k("bucket"), Online("teachers/bytes", Top(8))),
    "draws": (methods.random_sampling_kd(), Online("teachers/bytes", Draws(12))),
    "chunks": (ALM, Across("teachers/words")),
}
PLACES = {  # the student's mesh, that of the teacher, and the micro-batches: rows of 4 to 4, 2 to 4 and 4 to 2 devices
    "top-k": (Mesh(), Disjoint(4, Mesh()), 1),
    "draws": (Mesh(), Disjoint(4, Mesh(tensor=2)), 2),
    "chunks": (Mesh(tensor=2), Disjoint(4, Mesh()), 1),
}


def student(kind: str, root: Path, apart: bool) -> Experiment:
    objective, teacher = STUDENTS[kind]
    mesh, placement, accumulate = PLACES[kind]
    teacher = dataclasses.replace(teacher, run=str(root / teacher.run), placement=placement if apart else None)
    beside = dataclasses.replace(
        trained(data.Bytes(), 257, STEPS), objective=objective, teacher=teacher, seed=1, log_every=1
    )
    return dataclasses.replace(beside, mesh=mesh, accumulate=accumulate) if apart else beside


def losses(directory: Path) -> list[float]:
    rows = metrics.read(directory / "metrics.jsonl")
    return [row["loss"] for row in rows if "loss" in row]


def check_places(experiment: Experiment) -> None:
    """What is the teacher's lies on the last four devices, what is the student's on the first four, and no batch waits
    for another start."""
    of_student, of_teacher = set(jax.devices()[:4]), set(jax.devices()[4:])
    dataset = data.prepare(experiment.data, quiet=True)
    model, params = frozen.load(
        Path(experiment.teacher.run), experiment.dtype, dataset.tokenizer, experiment.meshes()[1]
    )
    apart, program = Apart(experiment, model, params), build(experiment)
    state = program.init(jax.random.key(0))
    batches = [dataset.batch(experiment.batch, 0, step) for step in range(3)]
    told = list(apart.training(batches, 0))
    for tree, devices in ((params, of_teacher), (state, of_student), (told, of_student)):
        for leaf in jax.tree.leaves(tree):
            assert leaf.sharding.device_set == devices
    late = list(apart.training(batches[2:], 2))
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (told[2], late[0])), strict=True))


if __name__ == "__main__":
    root = Path(sys.argv[1])
    check_places(student("draws", root, apart=True))
    found = {}
    for kind in STUDENTS:
        result = run(student(kind, root, apart=True), root / "apart" / kind, quiet=True)
        found[kind] = {"losses": losses(root / "apart" / kind), "validation": result["validation"]}
    print(json.dumps(found))
