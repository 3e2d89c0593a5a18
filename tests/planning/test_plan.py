"""`jaxdistill plan`: a tiny step on four pretended devices, a search with known answers, and what is refused."""

import dataclasses
import io
import json
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh
from rich.console import Console

from jaxdistill.cli import main
from jaxdistill.errors import InputError
from jaxdistill.parallel import aot, collectives, hlo
from jaxdistill.parallel.mesh import AXES
from jaxdistill.planning import advice, compiling, estimate, inputs, report, search, worker
from jaxdistill.planning.worker import Question

ROOT = pathlib.Path(__file__).parents[2]
TINY, POD = str(ROOT / "tests" / "tiny.py"), str(ROOT / "experiments" / "pod.py")
V, STUDENT, TEACHER = 257, 16, 32  # vocabulary and widths of tests/tiny.py


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """What the verb says of the tiny student on four devices, and its program."""
    text = tmp_path_factory.mktemp("plan") / "program.txt"
    command = [sys.executable, "-m", "jaxdistill", "plan", TINY, "--topology", "cpu:4", "--json", "--hlo", str(text)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout), hlo.parse(text.read_text())


def test_memory_and_work_of_a_real_step_are_those_of_its_arrays(planned):
    said, _ = planned
    experiment = Question(TINY, "cpu:4").experiment()
    numbers = experiment.model.num_params_total
    assert numbers <= said["arguments"]["params"] * 4 / 4 <= 1.1 * numbers  # 4 bytes a number on 4 devices; a few whole
    assert said["arguments"]["opt"] >= 2 * said["arguments"]["params"]
    assert said["facts"]["memory"]["arguments"] == pytest.approx(sum(said["arguments"].values()), rel=0.02)
    assert said["facts"]["memory"]["arguments"] < said["needed"]
    assert said["facts"]["memory"]["reused"] >= said["arguments"]["params"]  # donated
    forward = 1 / 4 * said["model_flops"]
    assert forward <= said["facts"]["flops"] <= 1.2 * forward  # blocks of queries look at little more than half
    assert said["facts"]["unknown_loops"] == 0
    assert said["mesh"] == {"fsdp": 4}


def test_output_layers_are_gathered_whole_and_the_gradient_scattered(planned):
    _, module = planned
    mesh = AbstractMesh((1, 4, 1, 1, 1), AXES)
    sent = collectives.of(module, 4)
    assert {one.axes(mesh) for one in sent} == {("fsdp",)}
    gathered = {one.bytes for one in sent if one.where.endswith("shard_map/all_gather")}
    assert gathered == {4 * V * STUDENT, 4 * V * TEACHER}
    scattered = {(one.bytes, one.sent) for one in sent if one.where.endswith("shard_map/reduce_scatter")}
    assert scattered == {(4 * V * STUDENT, 3 * V * STUDENT)}


def test_the_report_says_what_is_not_known(planned):
    said, _ = planned
    out = io.StringIO()
    report.show(said, Console(file=out, width=150))
    assert "mesh fsdp 4" in out.getvalue()
    assert "reduce-scatter" in out.getvalue()
    assert "no estimate of time" in out.getvalue()
    assert report.verdict(said) is None


def of_peaks(needed: float, busy: float = 2.0) -> dict:
    """An answer for a device of 100 bytes that sends for a second behind its work and half a second beside it."""
    talk = [{"overlaps": True, "seconds": 1.0}, {"overlaps": False, "seconds": 0.5}]
    return {
        "devices": 4, "peak": 10.0, "available": 100, "needed": needed, "tokens": 50, "model_flops": 40.0, "mesh": {},
        "facts": {"busy_seconds": busy, "talk": talk}, "advice": ["remat=true: less"], "compiled": True,
        "device": "toy", "arguments": {"params": 1, "opt": 2, "teachers": 3, "batch": 1},
    }  # fmt: skip


def test_a_step_takes_its_work_and_what_is_sent_beside_it():
    found = estimate.of(of_peaks(10))
    assert (found.seconds, found.at_best) == (2.5, 2.0)
    assert found.mfu == 40 / (4 * 10 * 2.5)
    assert found.tokens == 20
    assert estimate.of(of_peaks(10, busy=0.25)).seconds == 1.5  # what is sent behind it takes longer


def test_what_does_not_fit_is_said_with_numbers_and_what_helps():
    said = of_peaks(3 * 2**30) | {"available": 2**31}
    assert report.verdict(said) == "the step needs 3 GiB a device, and toy has 2 GiB; what helps: remat=true: less"
    assert "do not fit beside the student's state" in report.verdict(said | {"compiled": False, "facts": None})


def answer_of_settings(question: Question) -> dict:
    """Tensor parallelism of 4 is best, activations that are kept are faster and do not fit without it; one table is."""
    experiment = question.experiment()
    if experiment.mesh.tensor > 8:
        raise InputError("8 heads")
    kept = 1 if experiment.remat else 4
    needed = 60 * kept * experiment.batch / 8 / experiment.mesh.tensor / experiment.accumulate
    busy = experiment.batch / 8 * (2 + abs(experiment.mesh.tensor - 4) + experiment.remat) + experiment.mesh.data
    busy += experiment.table != "fsdp"
    return of_peaks(needed, busy) | {"tokens": experiment.batch}


def test_a_search_finds_what_is_fastest_among_what_fits():
    asked = []

    def ask(question):
        asked.append(question)
        return answer_of_settings(question)

    found = search.search(Question(TINY, "cpu:8", overrides=("remat=true",)), 60, ask=ask)
    assert len(found) <= 60
    assert len(asked) == len({question.overrides for question in asked})
    best = Question(TINY, "cpu:8", overrides=found[0].overrides).experiment()
    assert (best.mesh.tensor, best.mesh.data, best.remat, best.table) == (4, 1, False, "fsdp")
    fits = [estimate.fits(one.said) for one in found]
    assert fits == sorted(fits, reverse=True)
    assert report.row(found[0])[0].startswith("remat=true")


def test_advice_is_the_size_of_what_it_saves():
    experiment = dataclasses.replace(Question(TINY, "cpu:2").experiment(), batch=8)
    mesh = AbstractMesh((2, 1, 1, 1, 1), AXES)
    sentences = advice.of(experiment, mesh, {"params": 2**30, "opt": 2**31, "teachers": 2**28, "batch": 0})
    assert sentences[0] == "mesh.data=1 mesh.fsdp=-1: the state is shared out further and takes 1.5 GiB less"
    assert sentences[1] == "teacher=Cached(...), or one on devices of its own: its weights take 0.25 GiB here"
    assert any(sentence.startswith("dtype=bfloat16") for sentence in sentences)


def test_a_mesh_that_does_not_divide_and_a_teacher_of_unknown_shape_are_refused():
    with pytest.raises(InputError, match="tensor 3 does not fit 1 devices"):
        worker.answer(Question(TINY, "cpu:1", overrides=("mesh.tensor=3",)))
    with pytest.raises(InputError, match="the teacher nowhere is not here: name its size, as in --shape teacher="):
        inputs.config_of("teacher", "nowhere", {})
    with pytest.raises(InputError, match=r"there is no named size 'llama9'; there are .*llama3_1_8b"):
        Question(TINY, "cpu:1", shapes={"teacher": "llama9"}).configs()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([TINY, "--topology", "v9:2x2"], "there is no topology 'v9:2x2'; there are v4:2x2x4"),
        ([TINY, "--topology", "cpu:1", "--shape", "teacher"], "--shape teacher is not ROLE=SIZE"),
        ([TINY, "--topology", "cpu:1", "--search", "0"], "must be at least 1"),
        (["nowhere.py", "--topology", "cpu:1"], "there is no experiment file or run directory nowhere.py"),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, words):
    assert main(["plan", *arguments, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert words in error


@pytest.mark.skipif(not aot.has_libtpu(), reason="libtpu is not installed: run `make test`")
def test_a_teacher_that_cannot_stand_beside_its_student_is_refused_before_anything_is_compiled():
    said = compiling.compile_step(Question(POD, "v5e:2x2", "70b", ("batch=4",)))
    assert not said["compiled"]
    assert said["arguments"]["teachers"] == pytest.approx(70.55e9 * 2 / 4, rel=0.01)
    assert said["arguments"]["opt"] == pytest.approx(8.03e9 * 8 / 4, rel=0.01)
    sentence = report.verdict(said)
    assert "the frozen models (32.9 GiB a device) do not fit beside the student's state (22.4 GiB)" in sentence
    assert "TPU v5 lite has 15.8 GiB" in sentence


def test_shapes_of_frozen_models_have_the_places_of_loaded_ones():
    experiment = Question(TINY, "cpu:1").experiment()
    prepared = inputs.of(experiment, jax.devices()[:1], {})
    state, teachers, batch, rates, coef = prepared.arguments
    assert teachers["teacher"]["embed_VD"].shape == (V, TEACHER)
    assert batch.tokens_BL.shape == (experiment.batch, experiment.data.length)
    out, _ = jax.eval_shape(prepared.program.step, state, teachers, batch, rates, coef)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), out) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
