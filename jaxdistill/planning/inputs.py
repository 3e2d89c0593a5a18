"""The arguments of an experiment's step as shapes with places: nothing is made, and nothing is read but config.txt."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill import checkpoint, frozen, rundir
from jaxdistill.across import Chunking
from jaxdistill.cache.codec import SCALARS
from jaxdistill.cache.states import LastStates, States
from jaxdistill.data import Batch
from jaxdistill.errors import InputError
from jaxdistill.experiment import Experiment
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.losses.targets import Dense
from jaxdistill.models import quantised
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.parallel import rules
from jaxdistill.program import Program, build
from jaxdistill.teacher import BASE, TEACHER, Across, Cached, Online, token_index

GROUPS = ("params", "opt", "teachers", "batch")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A program and the arguments of its step.

    Attributes:
      program: of the experiment, on the mesh.
      mesh: the student's.
      arguments: of `program.step`, as shapes with shardings.
    """

    program: Program
    mesh: jax.sharding.Mesh
    arguments: tuple[Any, ...]

    def bytes(self) -> dict[str, int]:
        """What the arguments take on each device, by group: "params" and "opt" of the state, "teachers", "batch"."""
        state, teachers, batch, *_ = self.arguments
        parts = (state.params, state.opt, teachers, batch)
        return {name: sum(map(_on_device, jax.tree.leaves(part))) for name, part in zip(GROUPS, parts, strict=True)}


def _on_device(x: Any) -> int:
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize


def of(experiment: Experiment, devices: Sequence[jax.Device], shapes: Mapping[str, Config]) -> Inputs:
    """The inputs of an experiment's step on these devices.

    Args:
      shapes: of the models by role whose directories are not here.

    Raises:
      InputError: what cannot be compiled: a mesh that does not divide, a teacher of unknown shape.
    """
    if isinstance(experiment.teacher, Across) or isinstance(getattr(experiment.teacher, "keep", None), Chunking):
        raise InputError("a teacher with a tokenizer of its own cannot be planned: how its text falls is not known yet")
    if experiment.placement is not None:
        raise InputError(
            "a teacher on devices of its own cannot be planned: plan the student's step with teacher.placement=None on "
            "all devices, or with teacher=Cached(...) on its own"
        )
    mesh, table = experiment.mesh.build(devices), rules.named(experiment.teacher_table)
    dtype = jnp.dtype(experiment.dtype)
    models = {name: Transformer(config, dtype) for name, config in frozen_configs(experiment, shapes).items()}
    program = build(experiment, models, devices=devices)
    params = {name: frozen.abstract(model, mesh, table) for name, model in models.items()}
    if experiment.quantised:
        narrow = jax.eval_shape(quantised.quantise, params[TEACHER])
        params[TEACHER] = checkpoint.abstract_like(narrow, rules.shardings(narrow, mesh, table))
    if program.base:
        narrow, own = checkpoint.in_dtype(program.base, dtype), rules.named(experiment.table)
        params[BASE] = checkpoint.abstract_like(narrow, rules.shardings(program.base, mesh, own))
    batch = _batch(experiment, shapes)
    if isinstance(experiment.teacher, Cached) and isinstance(experiment.teacher.keep, LastStates):
        params[TEACHER] = _output_layer(experiment, shapes, mesh)
    batch = checkpoint.abstract_like(batch, rules.of_batch(batch, mesh, rules.named(experiment.table)))
    rates = experiment.optim.rates(0, experiment.steps)
    coef = dict.fromkeys([*experiment.objective, *(["steps"] if experiment.controllers else [])], jnp.float32(1))
    scalars = jax.eval_shape(lambda: (rates, coef))
    return Inputs(program, mesh, (program.abstract, params, batch, *scalars))


def frozen_configs(experiment: Experiment, shapes: Mapping[str, Config]) -> dict[str, Config]:
    """The shapes of the models that speak during the run, by name."""
    if not isinstance(experiment.teacher, Online):
        return {}
    return {name: config_of(name, source, shapes) for name, source in experiment.teacher.sources(experiment).items()}


def config_of(role: str, source: Any, shapes: Mapping[str, Config]) -> Config:
    """The shape of a frozen model: the one that is given, or what its configuration or its directory says."""
    if role in shapes:
        return shapes[role]
    if not isinstance(source, (str, Path)):
        return source.model
    if not (Path(source) / rundir.CONFIG).is_file():
        raise InputError(
            f"the {role} {source} is not here: name its size, as in --shape {role}=llama3_1_8b, give the experiment "
            "file a function shapes(), or make the directory"
        )
    return rundir.read_config(Path(source)).model


def _batch(experiment: Experiment, shapes: Mapping[str, Config]) -> Batch:
    """A batch as shapes, with its targets where they come from a cache."""
    shape = (experiment.batch, experiment.data.length)
    ids: Any = jax.ShapeDtypeStruct(shape, jnp.int32)
    numbers: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    batch = Batch(ids, ids, numbers, ids, ids)
    if not isinstance(experiment.teacher, Cached):
        return batch
    target = _kept(experiment, batch, shapes)
    return dataclasses.replace(batch, target=target, signals={f"{name}_BL": numbers for name in SCALARS})


def _kept(experiment: Experiment, batch: Batch, shapes: Mapping[str, Config]) -> Any:
    """What a cache holds of a batch, as shapes."""
    teacher = experiment.teacher
    assert isinstance(teacher, Cached)
    B, L, keep = experiment.batch, experiment.data.length, teacher.keep
    if isinstance(keep, LastStates):
        width = _teacher_config(experiment, shapes).width
        states = jax.ShapeDtypeStruct((B, L, width), jnp.int8)
        return States(batch.label_BL, states, batch.weight_BL)
    assert not isinstance(keep, Chunking)  # refused in `of`

    def sample(label_BL):
        rows, size = experiment.model.padded_vocab_size, experiment.model.vocab_size
        head = Head(jnp.zeros((B, L, 1)), jnp.zeros((rows, 1)), vocab_size=size)
        return keep(Dense(label_BL, head), jax.random.key(0), token_index(batch), Sharding())

    return jax.eval_shape(sample, batch.label_BL)


def _teacher_config(experiment: Experiment, shapes: Mapping[str, Config]) -> Config:
    assert experiment.teacher is not None
    return config_of(TEACHER, experiment.teacher.run, shapes)


def _output_layer(experiment: Experiment, shapes: Mapping[str, Config], mesh: jax.sharding.Mesh) -> Head:
    model = Transformer(_teacher_config(experiment, shapes), jnp.dtype(experiment.dtype))
    no_states: Any = None
    return model.head(frozen.abstract(model, mesh), no_states)
