"""Compile small steps of vocabulary-sharded losses for TPUs that are not here; prints what each sends, as JSON.

python compile_losses.py v5e:2x2 cross_entropy forward_kl top_k sampled
"""

import dataclasses
import json
import sys
import time

import jax

from jaxdistill import data
from jaxdistill.experiment import Experiment
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.losses.sampled import SampledCrossEntropy
from jaxdistill.losses.top_k import TopKDivergence
from jaxdistill.models import ladder
from jaxdistill.parallel import aot, collectives, hlo
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.planning import inputs
from jaxdistill.teacher import Draws, Online, Top

VOCABULARY, LENGTH, BATCH = 2048, 128, 4
LOSSES = {
    "cross_entropy": (CrossEntropy(), None),
    "forward_kl": (ForwardKL(), None),
    "top_k": (TopKDivergence(), Top(4)),
    "sampled": (SampledCrossEntropy(), Draws(4)),
}


def experiment(name: str, num_devices: int) -> Experiment:
    """The loss of this name; with "/context", two chips share out the positions of sequences twice as long.

    `BATCH` is that of four devices; more of them have more rows.
    """
    name, _, shared = name.partition("/")
    loss, keep = LOSSES[name]
    longer = 2 if shared else 1
    plain = Experiment(
        model=ladder.laptop(64, VOCABULARY),
        data=data.Tokens(data.Stdlib(), data.SentencePiece(VOCABULARY), length=longer * LENGTH),
        objective={"loss": Term(loss)},
        steps=10,
        batch=BATCH // longer * num_devices // 4,
        dtype="bfloat16",
        mesh=Mesh(tensor=2, **({shared: 2} if shared else {})),
    )
    if name == "cross_entropy":
        return plain
    teacher = dataclasses.replace(plain, model=ladder.laptop(128, VOCABULARY), objective={"ce": Term(CrossEntropy())})
    return dataclasses.replace(plain, teacher=Online(teacher, keep))


def report(topology: aot.Topology, name: str) -> dict:
    devices = topology.devices()
    prepared = inputs.of(experiment(name, len(devices)), devices, {})
    with jax.sharding.use_abstract_mesh(prepared.mesh.abstract_mesh):
        compiled = prepared.program.step.lower(*prepared.arguments).compile()
    module = hlo.parse(compiled.as_text())
    sent = [
        {"kind": one.kind, "axes": one.axes(prepared.mesh), "bytes": one.bytes, "times": one.times, "where": one.where}
        for one in collectives.of(module, prepared.mesh.size)
    ]
    kernels = [line.name for line, _ in hlo.executed(module) if "tpu_custom_call" in line.rest]
    return {"sent": sent, "kernels": kernels, "memory": aot.memory(compiled), "loops": hlo.unknown_loops(module)}


if __name__ == "__main__":
    began = time.monotonic()
    print(json.dumps({name: report(aot.topology(sys.argv[1]), name) for name in sys.argv[2:]}))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
