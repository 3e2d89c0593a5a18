"""The program of an experiment: its compiled functions, on its devices."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxdistill import checkpoint, evals
from jaxdistill.across import Marks
from jaxdistill.alongside import hear
from jaxdistill.experiment import Experiment
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.losses.objective import Objective
from jaxdistill.models.transformer import Transformer
from jaxdistill.parallel import rules, together
from jaxdistill.shard import Shard
from jaxdistill.start import LoRA, divide
from jaxdistill.step import NONE, State, make_eval, make_step, state_of
from jaxdistill.teacher import Across, Online


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of an experiment and the places of their arrays.

    Attributes:
      step: (state, teacher_params, batch, rates, coef) -> (state, metrics); donates the state.
      evaluate: (params, teacher_params, batch) -> sums.
      init: key -> State, every array born where it belongs.
      begin: trained params -> State, for parameters that are not random; donates them.
      abstract: the State as shapes with shardings.
      rows: of the global batch, those that this process makes.
      place: a batch of these rows, on the host -> the global batch on the devices.
      base: shapes of the parameters that are not trained, which teacher_params["base"] holds; empty for most runs.
    """

    step: Any
    evaluate: Callable
    init: Callable
    begin: Callable
    abstract: State
    rows: np.ndarray
    place: Callable
    base: Mapping[str, Any]


def build(
    experiment: Experiment,
    teachers: Mapping[str, Transformer] = NONE,
    devices: Any = None,
    validation: Objective | None = None,
    marks: tuple[Marks | None, Marks] | None = None,
) -> Program:
    """The program of an experiment on these devices (default: all), with its frozen models by name.

    `validation` is what an evaluation measures (default: `evals.objective`). `marks` are of the
    teacher's ids, where it speaks in the run, and of the student's, where the two have other tokenizers.

    Raises InputError where its shapes cannot shard.
    """
    mesh, _ = experiment.meshes(devices)
    table, teacher_table = rules.named(experiment.table), rules.named(experiment.teacher_table)
    rows = experiment.batch // experiment.accumulate
    for own in (table, teacher_table if experiment.placement is None else table):
        rules.check("BL", (rows, experiment.data.length), mesh, "a micro-batch", own)
    model = make_model(experiment, mesh, table)
    shard = rules.constrain(mesh, teacher_table)
    teachers = {name: dataclasses.replace(teacher, shard=shard) for name, teacher in teachers.items()}
    objective = Objective.of(experiment.objective)

    combined = experiment.combine.init(objective.names) if experiment.combine else None

    def begin(params, key=None):
        key = jax.random.key(experiment.seed) if key is None else key
        width = teachers["teacher"].config.width if "teacher" in teachers else None
        extras = objective.extras(jax.random.fold_in(key, 1), experiment.model.width, width)
        return state_of(params | extras, experiment.optim, experiment.controllers, combined)

    def init(key):
        trained, _ = divide(experiment.start, model.init(key), key)
        return begin(trained, key)

    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = rules.shardings(abstract, mesh, table)

    by_sequence = NamedSharding(mesh, rules.spec("BL", table))
    own_B = together.rows((experiment.batch, experiment.data.length), by_sequence)
    sharding, teacher_sharding = head_sharding(mesh, table), head_sharding(mesh, teacher_table)
    across = speaks_across(experiment, marks, teacher_sharding)
    step = make_step(
        model,
        experiment.optim,
        objective,
        teachers=teachers,
        keep=experiment.teacher.keep if isinstance(experiment.teacher, Online) else None,
        across=across,
        marks=None if marks is None else marks[1],
        controllers=experiment.controllers,
        combine=experiment.combine,
        seed=experiment.seed,
        accumulate=experiment.accumulate,
        sharding=sharding,
        teacher_sharding=teacher_sharding,
    )
    shared = teachers if across is None else NONE  # what has ids of its own gives a student's ids no distribution
    evaluate = make_eval(
        model,
        evals.objective(bool(shared)) if validation is None else validation,
        teachers=shared,
        sharding=sharding,
    )
    precise = precision(experiment.dtype)
    return Program(
        step=together.in_turn(jax.jit(precise(step), donate_argnums=0, out_shardings=(shardings, None))),
        evaluate=together.in_turn(jax.jit(precise(evaluate))),
        init=jax.jit(init, out_shardings=shardings),
        begin=jax.jit(begin, out_shardings=shardings, donate_argnums=0),
        abstract=checkpoint.abstract_like(abstract, shardings),
        rows=own_B,
        place=place_on(mesh, table, experiment.batch, own_B),
        base=jax.eval_shape(lambda key: divide(experiment.start, model.init(key), key)[1], jax.random.key(0)),
    )


def place_on(
    mesh: jax.sharding.Mesh, table: rules.Rules, size: int | None = None, rows_B: np.ndarray | None = None
) -> Callable[[Any], Any]:
    """place(host batch) -> the global batch on the devices of a mesh, as the table has it.

    Every process of the job gives its rows `rows_B` of the `size` of the global batch; without them, all rows.
    """

    def place(batch: Any) -> Any:
        if mesh.size == 1:
            return batch
        whole = batch if size is None else together.whole(batch, size)
        return together.assemble(batch, whole, rows_B, rules.of_batch(whole, mesh, table))

    return place


def speaks_across(
    experiment: Experiment, marks: tuple[Marks | None, Marks] | None, sharding: Sharding
) -> Callable | None:
    """What a teacher of other tokens says of a batch, as `make_target` takes it; None where there is none."""
    if not isinstance(experiment.teacher, Across) or marks is None or marks[0] is None:
        return None
    return functools.partial(
        hear, chunking=experiment.teacher.chunking, teacher=marks[0], student=marks[1], sharding=sharding
    )


def head_sharding(mesh: jax.sharding.Mesh, table: rules.Rules = rules.DEFAULT) -> Sharding:
    """How tokens and vocabulary lie on the devices of a mesh, as the table has it."""
    if mesh.size == 1:
        return Sharding()
    shard = rules.OnMesh(mesh, table)
    (sequences, positions), (vocabulary, width) = ([shard.axes(letter, own) for letter in own] for own in ("BL", "VD"))
    return Sharding(mesh, sequences, positions, vocabulary, width)


def make_model(
    experiment: Experiment, mesh: jax.sharding.Mesh | None = None, table: rules.Rules = rules.DEFAULT
) -> Transformer:
    """The model of an experiment, in its compute dtype."""
    shard = Shard() if mesh is None else rules.constrain(mesh, table)
    model = Transformer(experiment.model, jnp.dtype(experiment.dtype), shard, experiment.remat)
    start = getattr(experiment, "start", None)
    return dataclasses.replace(model, adapter_scale=start.scale) if isinstance(start, LoRA) else model


def precision(dtype: str) -> Callable[[Callable], Callable]:
    """Under the fp32 policy matmuls are computed in fp32 also where the hardware would rather not (TPU, TF32)."""

    def wrap(function):
        @functools.wraps(function)
        def call(*args):
            with jax.default_matmul_precision("float32") if dtype == "float32" else contextlib.nullcontext():
                return function(*args)

        return call

    return wrap
