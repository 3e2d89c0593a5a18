"""A student on one of two fake devices with its teacher on the other, and on both beside it.

test_apart runs it in a process of its own, since the number of devices is fixed when JAX starts.
"""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill import data, frozen, metrics
from jaxdistill.apart import Apart
from jaxdistill.experiment import Experiment
from jaxdistill.losses import methods
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.objective import Term
from jaxdistill.models.transformer import Config
from jaxdistill.parallel.placement import carry
from jaxdistill.run import run
from jaxdistill.teacher import Disjoint, Draws, Online

PLAIN = Experiment(
    model=Config(vocab_size=257, num_layers=2, width=32, num_heads=2, head_size=16, mlp_width=64),
    data=data.Tokens(
        data.Markov(alphabet=16, order=1, concentration=0.3, seed=0, num_documents=100, length=500),
        data.Bytes(),
        length=32,
        validation_windows=40,
    ),
    objective={"ce": Term(CrossEntropy())},
    steps=1,
    batch=16,
)


def students(teacher: Path) -> dict[str, Experiment]:
    """The same student beside its teacher, which is int8, and apart from it."""
    beside = dataclasses.replace(
        PLAIN,
        objective=methods.random_sampling_kd(),
        teacher=Online(str(teacher), Draws(12), quantised="int8"),
        steps=20,
        seed=1,
        log_every=1,
    )
    apart = dataclasses.replace(beside.teacher, placement=Disjoint(1))
    return {"beside": beside, "apart": dataclasses.replace(beside, teacher=apart)}


def check_order(experiment: Experiment) -> None:
    """The teacher is started on a batch before the step of the one before it, and nothing waits for either; what is
    each one's lies on its device alone; and a run that goes on is told what it would have been told."""
    dataset, (_, mesh) = data.prepare(experiment.data, quiet=True), experiment.meshes()
    model, params = frozen.load(Path(experiment.teacher.run), experiment.dtype, dataset.tokenizer, mesh)
    batches, order = [dataset.batch(experiment.batch, 1, step) for step in range(4)], []
    apart = Apart(experiment, model, params)
    with unread():
        told = list(noted("step", order, apart.training(noted("target", order, batches), 0)))
    targets, steps = ([(what, n) for n in range(4)] for what in ("target", "step"))
    assert order == [*targets[:2], steps[0], targets[2], steps[1], targets[3], *steps[2:]]
    student, teacher = jax.devices()
    assert all(x.devices() == {teacher} for x in jax.tree.leaves(params))
    assert all(x.devices() == {student} for batch in told for x in jax.tree.leaves(batch.target))
    for late, target in zip(apart.training(batches[2:], 2), told[2:], strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, late.target, target.target))


def noted(what: str, order: list[tuple[str, int]], items: Any) -> Any:
    """The same items; notes when each is asked for, or given."""
    for number, item in enumerate(items):
        order.append((what, number))
        yield item


@contextlib.contextmanager
def unread():
    """Inside, nothing that a device has may be read on the host."""

    def refuse(self):
        raise AssertionError("a device was waited for")

    kind = type(jax.numpy.zeros(1))
    whole, kind._value = kind._value, property(refuse)
    try:
        yield
    finally:
        kind._value = whole


def check_carry() -> None:
    """Rows on one device go to two and back, and the host does not see them; `device_put` would show them to it."""
    one, two = (
        jax.sharding.NamedSharding(jax.make_mesh((n,), ("fsdp",), devices=jax.devices()[-n:]), rows)
        for n, rows in ((1, jax.sharding.PartitionSpec()), (2, jax.sharding.PartitionSpec("fsdp")))
    )
    x = jax.device_put(np.arange(24).reshape(4, 6), one)
    with unread():
        there = carry(x, two)
        back = carry(there, one)
    assert there.sharding == two and back.sharding == one
    assert np.array_equal(there, x) and np.array_equal(back, x)


def main(root: Path) -> None:
    """Prints by placement the losses of a run and its result."""
    check_carry()
    run(PLAIN, root / "teacher", quiet=True)
    for placement, experiment in students(root / "teacher").items():
        if placement == "apart":
            check_order(experiment)
        result = run(experiment, root / placement, quiet=True)
        rows = metrics.read(root / placement / "metrics.jsonl")
        print(json.dumps({placement: ([row["loss"] for row in rows if "loss" in row], result)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
