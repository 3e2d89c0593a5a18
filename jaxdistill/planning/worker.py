"""The process that compiles: reads a question as JSON from the standard input, writes the answer as JSON.

A process of its own for each compilation, because JAX and libtpu read their settings once, and because the memory of a
large compilation is given back.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxdistill import rundir, sweep
from jaxdistill.errors import InputError
from jaxdistill.experiment import Experiment, call, has
from jaxdistill.models import families
from jaxdistill.models.design import Experts
from jaxdistill.models.transformer import Config
from jaxdistill.parallel import aot, chips
from jaxdistill.parallel.aot import Topology
from jaxdistill.planning import advice, facts, inputs
from jaxdistill.planning.inputs import Inputs
from jaxdistill.scaling import flops


@dataclasses.dataclass(frozen=True)
class Question:
    """What to compile for what.

    Attributes:
      target: an experiment file or a run directory.
      preset, overrides: of the file, as for `jaxdistill run`.
      topology: by name.
      shapes: named sizes, such as "llama3_1_8b", of models by role whose directories are not here; others are what
        the file's function `shapes` says, if it has one.
      hlo: a file for the text of the compiled program.
    """

    target: str
    topology: str
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    shapes: dict[str, str] = dataclasses.field(default_factory=dict)
    hlo: str | None = None

    def experiment(self) -> Experiment:
        """The experiment that is asked for. InputError where there is none."""
        if not Path(self.target).is_dir():
            return sweep.override_all(call(self.target, "config", preset=self.preset), self.overrides)
        found = rundir.read_config(Path(self.target))
        if not isinstance(found, Experiment):
            raise InputError(f"{self.target} holds no experiment: there is no step to plan")
        return sweep.override_all(found, self.overrides)

    def configs(self) -> dict[str, Config]:
        """The shapes of models whose directories are not here, by role."""
        file = Path(self.target)
        of_file = call(file, "shapes", preset=self.preset) if not file.is_dir() and has(file, "shapes") else {}
        return {**of_file, **{role: families.named(size) for role, size in self.shapes.items()}}


def answer(question: Question) -> dict[str, Any]:
    """The facts of one experiment on one topology, as plain data; InputError where it cannot be compiled."""
    experiment, topology = question.experiment(), aot.topology(question.topology)
    devices = topology.devices()
    if topology.platform == "gpu":
        topology = dataclasses.replace(topology, chip=chips.of_gpu(devices[0].device_kind))
    shapes = question.configs()
    prepared = inputs.of(experiment, devices, shapes)
    arguments, began = prepared.bytes(), time.monotonic()
    said: dict[str, Any] = {
        "topology": topology.name,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "mesh": {axis: size for axis, size in prepared.mesh.shape.items() if size > 1},
        "arguments": arguments,
        "available": topology.chip.memory if topology.chip else None,
        "tokens": experiment.batch * experiment.data.length,
        "model_flops": model_flops(experiment, shapes),
        "peak": topology.chip.flops if topology.chip else None,
        "advice": advice.of(experiment, prepared.mesh, arguments),
        "versions": {"jax": jax.__version__, "compiler": _compiler(topology)},
    }
    if said["available"] is not None and sum(arguments.values()) > said["available"]:
        return said | {"facts": None, "needed": sum(arguments.values()), "compiled": False}
    return said | _compile(prepared, topology, question.hlo) | {"seconds": time.monotonic() - began}


def _compile(prepared: Inputs, topology: Topology, text: str | None) -> dict[str, Any]:
    with jax.sharding.use_abstract_mesh(prepared.mesh.abstract_mesh):
        lowered = prepared.program.step.lower(*prepared.arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = aot.out_of_memory(str(error))
        if refused is None:
            raise
        return {"facts": None, "compiled": True, **refused}
    if text is not None:
        Path(text).write_text(compiled.as_text())
    found = facts.of(compiled, prepared.mesh, topology)
    return {"facts": dataclasses.asdict(found), "needed": found.memory["total"], "compiled": True}


def model_flops(experiment: Experiment, shapes: Mapping[str, Config]) -> float:
    """Useful FLOPs of a step on all devices: three forward passes of the student and one of each live frozen model."""

    def forward(config: Config) -> float:
        attention = config.num_heads * config.head_size  # its width, which not all families give the stream
        return flops.forward_flops(
            active_params(config), config.num_layers, config.width, experiment.data.length, config.vocab_size
        ) + 2 * config.num_layers * experiment.data.length * (attention - config.width)

    models = inputs.frozen_configs(experiment, shapes).values()
    tokens = experiment.batch * experiment.data.length
    return tokens * (3 * forward(experiment.model) + sum(map(forward, models)))


def active_params(config: Config) -> int:
    """Parameters that a token meets, without embeddings."""
    mlp = config.design.mlp
    idle = mlp.num - mlp.active if isinstance(mlp, Experts) else 0
    return config.num_params - idle * 3 * config.num_layers * config.width * config.mlp_width


def _compiler(topology: Topology) -> str:
    from importlib import metadata

    name = "libtpu" if topology.platform == "tpu" else "jaxlib"
    return f"{name} {metadata.version(name)}"


def main() -> None:
    question = Question(**json.load(sys.stdin))
    try:
        said = answer(question)
    except InputError as error:
        said = {"error": str(error)}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
