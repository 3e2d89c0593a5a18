"""Every experiment file builds, traces, and resolves to the configuration that is written down.

A changed default shows up here as a difference in every run that it touches; `pytest --update-golden` accepts it.
"""

import csv
import dataclasses
import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxdistill import config, sweep
from jaxdistill.across import Marks
from jaxdistill.align import Chunks
from jaxdistill.alongside import hear
from jaxdistill.data import Batch
from jaxdistill.data.windows import Beside
from jaxdistill.errors import InputError
from jaxdistill.experiment import Experiment, has, load_module
from jaxdistill.losses.objective import Objective
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import AXES, Mesh
from jaxdistill.planning import inputs
from jaxdistill.program import make_model
from jaxdistill.step import init_state, make_step
from jaxdistill.teacher import Across

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "configs"
FILES = [file for file in sorted((ROOT / "experiments").glob("*.py")) if has(file, "config")]
PRESETS = ("laptop", "markov", "gpu", "paper")


def check_golden(request, name, text):
    path = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path} is missing: run pytest --update-golden and look at what it writes"
    assert text == path.read_text()


def trace(experiment: Experiment, shapes: dict[str, Config] = {}):  # noqa: B006
    """The state after one step as shapes, without computing anything; `shapes` are of teachers elsewhere."""
    model = make_model(experiment)
    source = None if experiment.teacher is None else experiment.teacher.run
    teachers = {} if source is None else {"teacher": Transformer(inputs.config_of("teacher", source, shapes))}
    keep, across, student = getattr(experiment.teacher, "keep", None), None, None
    if isinstance(experiment.teacher, Across):
        teacher, student = (Marks(*2 * [np.zeros(m.config.vocab_size, bool)]) for m in (teachers["teacher"], model))
        across = functools.partial(hear, chunking=experiment.teacher.chunking, teacher=teacher, student=student)
    objective = Objective.of(experiment.objective)
    step = make_step(model, experiment.optim, objective, teachers=teachers, keep=keep, across=across, marks=student)
    state = jax.eval_shape(lambda key: init_state(model, experiment.optim, key), jax.random.key(0))
    teacher_params = {name: jax.eval_shape(t.init, jax.random.key(0)) for name, t in teachers.items()}
    shape = (experiment.batch, experiment.data.length)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = Batch(ids, ids, jax.ShapeDtypeStruct(shape, jnp.float32), ids, ids)
    batch = batch if across is None else dataclasses.replace(batch, beside=Beside(batch, Chunks(ids, ids, ids)))
    coef = {name: jnp.float32(1) for name in experiment.objective}
    after, metrics = jax.eval_shape(step, state, teacher_params, batch, experiment.optim.rates(0, 10), coef)
    assert after == state  # shapes and dtypes
    assert metrics["loss"].shape == ()
    return state


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_is_the_one_written_down(request, file):
    check_golden(request, file.stem, config.text(load_module(file).config()))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sweep_is_the_one_written_down(request, preset):
    points = sweep.with_sources(load_module(ROOT / "experiments" / "scaling_law.py").sweep(preset))
    lines = [f"{name} {config.identity(e)} {sweep.cost(e):.3e} {e.protocol}" for name, e in points.items()]
    check_golden(request, f"scaling_law-{preset}", "\n".join(lines) + "\n")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_traces(file):
    module = load_module(file)
    trace(module.config(), module.shapes() if hasattr(module, "shapes") else {})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_report_of_nothing_says_what_is_missing(file, tmp_path):
    module = load_module(file)
    if not hasattr(module, "report"):
        pytest.skip("its sweep is a table of losses, for jaxdistill fit")
    with pytest.raises(InputError, match=r"has no finished|is not a run directory|holds finished runs"):
        module.report(tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_largest_student_and_teacher_of_a_sweep_trace(preset):
    points = load_module(ROOT / "experiments" / "scaling_law.py").sweep(preset).values()
    students = [point for point in points if point.teacher is not None]
    trace(max(students, key=lambda point: point.teacher.run.model.num_params))
    trace(max(points, key=lambda point: point.model.num_params))


def test_the_ladder_shards_over_a_pod():
    points = load_module(ROOT / "experiments" / "scaling_law.py").sweep("paper").values()
    largest = max(points, key=lambda point: point.model.num_params)
    mesh = AbstractMesh(Mesh(tensor=8).sizes(512), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    placed = rules.shardings(trace(largest), mesh)
    assert placed.params["layers"]["mlp"]["gate_DF"].num_devices == 512


def test_the_paper_preset_never_repeats_text_between_teacher_and_student():
    for point in load_module(ROOT / "experiments" / "scaling_law.py").sweep("paper").values():
        if point.teacher is not None:
            assert point.data.part == (1, 2)
            assert point.teacher.run.data.part == (0, 2)


def test_each_preset_has_enough_runs_to_identify_the_laws():
    for preset in PRESETS:
        points = load_module(ROOT / "experiments" / "scaling_law.py").sweep(preset).values()
        supervised = [point for point in points if point.teacher is None]
        assert len(supervised) >= 8
        assert len({round(point.tokens / point.model.num_params, 3) for point in supervised}) >= 4
        assert len({point.teacher.run.model for point in points if point.teacher is not None}) >= 2


def largest_buffers(experiment: Experiment, **streaming) -> int:
    """Elements of the largest array in the compiled step."""
    model = make_model(experiment)
    teachers = {} if experiment.teacher is None else {"teacher": make_model(experiment.teacher.run)}
    step = make_step(model, experiment.optim, Objective.of(experiment.objective), teachers=teachers, **streaming)
    state = jax.eval_shape(lambda key: init_state(model, experiment.optim, key), jax.random.key(0))
    teacher_params = {name: jax.eval_shape(t.init, jax.random.key(0)) for name, t in teachers.items()}
    ids = jax.ShapeDtypeStruct((experiment.batch, experiment.data.length), jnp.int32)
    batch = Batch(ids, ids, jax.ShapeDtypeStruct(ids.shape, jnp.float32), ids, ids)
    coef = {name: jnp.float32(1) for name in experiment.objective}
    compiled = jax.jit(step).lower(state, teacher_params, batch, experiment.optim.rates(0, 10), coef).compile()
    return max(math.prod(map(int, s.split(","))) for s in re.findall(r"\w\[(\d[\d,]*)\]", compiled.as_text()))


def student_of(file: str, vocab_size: int) -> Experiment:
    """The student of an experiment with a vocabulary that outweighs everything else in its step."""
    experiment = load_module(ROOT / "experiments" / f"{file}.py").config()
    teacher = experiment.teacher.run
    wide = [
        dataclasses.replace(e, model=dataclasses.replace(e.model, vocab_size=vocab_size)) for e in (experiment, teacher)
    ]
    return dataclasses.replace(wide[0], teacher=dataclasses.replace(experiment.teacher, run=wide[1]))


@pytest.mark.parametrize("file", ["distill", "scaling_law"])
def test_nothing_in_the_compiled_step_has_the_size_of_all_logits(file):
    experiment = student_of(file, 32_768)
    logits = experiment.batch * experiment.data.length * experiment.model.vocab_size
    assert largest_buffers(experiment, implementation="reference") >= logits  # so the search can find one
    assert largest_buffers(experiment) <= logits / 2


def test_the_report_of_sparse_kd_has_every_run_in_its_table_page_and_figure(tmp_path):
    """From the committed results: what takes minutes to measure is not measured again here."""
    experiment = load_module(ROOT / "experiments" / "sparse_kd.py")
    with open(ROOT / "experiments" / "results" / "sparse_kd.csv") as file:
        rows = [
            {name: value if name == "run" else float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    assert {row["run"] for row in rows} == experiment.sweep().keys() - {"teacher"}
    table, figure, page = experiment.write(rows, tmp_path)
    with open(table) as file:
        assert [row["run"] for row in csv.DictReader(file)] == [row["run"] for row in rows]
    assert all(f">{row['run']}<" in page.read_text() for row in rows) and figure.read_text().lstrip().startswith(
        "<?xml"
    )
    by_name = {row["run"]: row for row in rows}  # the published order, where it is larger than what a seed does
    ce, full = (max(by_name[f"{end}-{seed}"]["loss"] for seed in experiment.SEEDS) for end in ("ce", "full"))
    assert by_name["top3-renormalised"]["loss"] > by_name["top12-renormalised"]["loss"] > ce
    assert full < by_name["draws50-0"]["loss"] < by_name["top50-renormalised"]["loss"] < ce


def test_the_committed_moves_to_another_tokenizer_are_the_sweep_and_have_the_published_order_at_every_rate():
    experiment = load_module(ROOT / "experiments" / "cross_tokenizer.py")
    with open(ROOT / "experiments" / "results" / "cross_tokenizer.csv") as file:
        rows = [
            {name: float(value) if name in ("peak", "bits per byte") else value for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
    assert [row["run"] for row in rows] == list(experiment.sweep())
    assert [panel.get_title("left") for panel in experiment.figure(rows).axes] == list(experiment.PROTOCOLS)
    bits = {row["run"]: row["bits per byte"] for row in rows}
    rates = [f"-peak{peak:g}-0" for peak in experiment.RATES]
    for run in ("-0", "-1", *rates):
        alm, mined, sft = (bits[f"pieces-{arm}{run}"] for arm in ("alm", "mined", "ce"))
        assert alm < mined < sft < bits["pieces-untrained-0"]
