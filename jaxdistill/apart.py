"""A teacher on devices of its own: it speaks of the next batch while the student learns from this one.

    teacher's devices   target 0   target 1   target 2   ...
    student's devices              step 0     step 1     ...

What it says crosses from device to device and reaches the step as what a cache holds does, as `Batch.target`. Nothing
here waits for a target.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxdistill.across import Marks
from jaxdistill.cache.encode import statistics
from jaxdistill.cache.reader import distance
from jaxdistill.cache.samplers import Top, TopP
from jaxdistill.data import Batch
from jaxdistill.experiment import Experiment
from jaxdistill.losses.linear_heads.bins import map_chunks
from jaxdistill.losses.objective import Objective
from jaxdistill.models.transformer import Transformer
from jaxdistill.parallel import placement, rules
from jaxdistill.program import head_sharding, place_on, precision, speaks_across
from jaxdistill.step import micro_batches, step_key, whole_batch
from jaxdistill.teacher import TEACHER, Online, make_target, token_index


class Apart:
    """The compiled teacher of an experiment whose `placement` is Disjoint.

    Args:
      experiment: of the student.
      model, params: the teacher, on its own devices: the second of `experiment.meshes`.
      devices: of the job; default all.
      marks: of the teacher's ids and the student's, where the two have other tokenizers.

    Raises InputError where the teacher's mesh cannot share out a micro-batch.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: Transformer,
        params: Any,
        *,
        devices: Sequence[jax.Device] | None = None,
        marks: tuple[Marks | None, Marks] | None = None,
    ):
        student_mesh, mesh = experiment.meshes(devices)
        student_table, table = rules.named(experiment.table), rules.named(experiment.teacher_table)
        rows = experiment.batch // experiment.accumulate
        rules.check("BL", (rows, experiment.data.length), mesh, "a micro-batch of the teacher", table)
        self._model, self._params = dataclasses.replace(model, shard=rules.constrain(mesh, table)), params
        self._keep = experiment.teacher.keep if isinstance(experiment.teacher, Online) else None
        self._experiment, self._sharding = experiment, head_sharding(mesh, table)
        self._across = speaks_across(experiment, marks, self._sharding)
        by_row, precise = NamedSharding(mesh, rules.spec("B", table)), precision(experiment.dtype)
        self._speak = precise(jax.jit(self._make_speak(), out_shardings=by_row))
        self._measure = precise(jax.jit(self._make_measure(), out_shardings=by_row))
        self._place, self._place_student = place_on(mesh, table), place_on(student_mesh, student_table)
        self._before: jax.Array | None = None
        self._rows_of_student = NamedSharding(student_mesh, rules.spec("B", student_table))

    @property
    def validation(self) -> Objective:
        """What an evaluation measures: cross-entropy, and as much of KL(teacher || student) as is told here."""
        if self._keep is None:
            return distance(None)
        return distance("ranked" if isinstance(self._keep, Top | TopP) else "sampled")

    def training(self, batches: Iterable[Batch], first_step: int) -> Iterator[Batch]:
        """Batches on the student's devices with their targets, the teacher always one ahead of what was asked for."""
        return ahead(
            dataclasses.replace(self._student_part(batch), target=self._carry(self._said(self._speak, batch, step)))
            for step, batch in enumerate(batches, first_step)
        )

    def keep_pace(self, loss: jax.Array) -> None:
        """Waits for the step before the one whose loss this is: a teacher that is faster than its student would fill
        the memory with targets. The devices do not wait, they have that one to work on."""
        if self._before is not None:
            self._before.block_until_ready()
        self._before = loss

    def validating(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """As `training`, and with the teacher's numbers of every token among the signals, as a cache gives them.

        Draws are the same in every evaluation. A teacher of another tokenizer says nothing here.
        """
        if self._keep is None:
            return map(self._place_student, batches)
        return ahead(self._measured(batch, number) for number, batch in enumerate(batches))

    def _measured(self, batch: Batch, number: int) -> Batch:
        target, signals = self._carry(self._said(self._measure, batch, number))
        placed = self._student_part(batch)
        return dataclasses.replace(placed, target=target, signals={**placed.signals, **signals})

    def _said(self, function: Any, batch: Batch, number: int) -> Any:
        return function(self._params, self._place(batch), np.int32(number))

    def _student_part(self, batch: Batch) -> Batch:
        return self._place_student(dataclasses.replace(batch, beside=None))

    def _carry(self, said: Any) -> Any:
        return jax.tree.map(lambda x: placement.carry(x, self._rows_of_student), said)

    def _make_speak(self):
        """speak(params, batch, step) -> what the step of that number is told: the numbers it would make itself."""
        experiment = self._experiment
        target_of = make_target({TEACHER: self._model}, self._keep, self._sharding, across=self._across)

        def speak(params: Any, batch: Any, step: Any) -> Any:
            key = step_key(experiment.seed, step)

            def of_part(part: Any) -> Any:
                target, further = target_of({TEACHER: params}, part[0], key, part[1])
                return target if self._across is None else further.chunks

            parts = micro_batches((batch, token_index(batch)), experiment.accumulate)
            return whole_batch(jax.lax.map(of_part, parts))

        return speak

    def _make_measure(self):
        """measure(params, batch, number) -> (target, what the teacher says of every token beside it)."""
        speak, model, sharding = self._make_speak(), self._model, self._sharding

        def measure(params: Any, batch: Any, number: Any) -> tuple[Any, dict[str, jax.Array]]:
            h_BLD, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
            of_chunk = lambda head, inputs: statistics(head, inputs["label_BL"], sharding)  # noqa: E731
            inputs = {"label_BL": batch.label_BL}
            return speak(params, batch, number), map_chunks(of_chunk, model.head(params, h_BLD), inputs, positions=None)

        return measure


def ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, each given when the next one has been started."""
    items = iter(items)
    for waiting in items:
        for following in items:
            yield waiting
            waiting = following
        yield waiting
