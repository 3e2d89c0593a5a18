"""Evaluation of finished runs: what is measured is what training measured, and bad input is one sentence."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxdistill import caching, data, rundir
from jaxdistill.cli import main
from jaxdistill.config import identity, text
from jaxdistill.errors import InputError
from jaxdistill.evaluate import Request, evaluate, find, find_teacher, write
from jaxdistill.exchange import ElsewhereText, Imported
from jaxdistill.experiment import load_module
from jaxdistill.models.variant import Variant
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.run import run
from jaxdistill.teacher import Cached, Draws

U = 2.0**-24


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, tiny):
    """A teacher and its student, trained for a few steps."""
    root, module = tmp_path_factory.mktemp("sweep"), load_module(tiny)
    teacher = dataclasses.replace(module.supervised(), steps=10)
    student = dataclasses.replace(module.config(), steps=10)
    student = dataclasses.replace(student, teacher=dataclasses.replace(student.teacher, run=teacher))
    for name, experiment in (("teacher", teacher), ("student", student)):
        run(experiment, root / name, experiment_file=tiny, quiet=True)
    return root


@pytest.fixture(scope="module")
def records(sweep):
    return evaluate(sweep, quiet=True)


def test_the_scores_are_those_of_the_end_of_training(sweep, records):
    assert records.keys() == {"teacher", "student"}
    for name, record in records.items():
        result = rundir.read_result(sweep / name)
        # another program for the same sums of 2048 tokens, batch by batch
        assert record["scores"]["validation"]["loss"] == pytest.approx(result["loss"], rel=2048 * U)
        assert record["scores"]["validation"]["bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=2048 * U)
        assert record["scores"]["validation"]["tokens"] == result["validation"]["tokens"]
    student, result = records["student"]["scores"]["validation"], rundir.read_result(sweep / "student")
    assert student["forward_kl"] == pytest.approx(result["validation"]["forward_kl"], rel=2048 * U)
    assert student["teacher_loss"] == pytest.approx(result["L_T"], rel=2048 * U)


def test_a_student_is_compared_with_its_own_teacher_and_a_teacher_with_none(records):
    assert records["student"]["teacher"] == "teacher"
    assert records["teacher"]["teacher"] is None
    assert "forward_kl" not in records["teacher"]["scores"]["validation"]
    assert 0 < records["student"]["scores"]["validation"]["acceptance"] < 1


def test_behind_a_cache_stands_the_teacher_that_filled_it(sweep):
    student = rundir.read_config(sweep / "student")
    cached = dataclasses.replace(student, teacher=Cached(student.teacher.run, Draws(5), windows=8))
    (recipe,) = cached.sources.values()
    caching.build(recipe, sweep / "cache", quiet=True)
    rundir.prepare(sweep / "of-cache", cached)
    assert find_teacher(sweep / "of-cache") == sweep / "teacher"
    assert [path.name for path in find(sweep)] == ["student", "teacher"]  # neither the cache nor what is unfinished
    with pytest.raises(InputError, match="cache is a cache of a teacher and no run"):
        find(sweep / "cache")


def test_another_teacher_can_be_named_and_none(sweep):
    own = evaluate(sweep / "teacher", Request(teacher=str(sweep / "teacher")), quiet=True)["teacher"]["scores"][
        "validation"
    ]
    assert own["agreement"] == 1
    assert own["acceptance"] == pytest.approx(1, rel=257 * U)
    alone = evaluate(sweep / "student", Request(teacher="none"), quiet=True)["student"]
    assert alone["teacher"] is None and "acceptance" not in alone["scores"]["validation"]


def test_windows_and_split_can_be_chosen(sweep):
    def scores(**request):
        return evaluate(sweep / "teacher", Request(**request), quiet=True)["teacher"]["scores"]

    validation, train = scores(windows=16)["validation"], scores(split="train", windows=16)["train"]
    assert validation["windows"] == train["windows"] == 16
    assert validation["loss"] != train["loss"]
    assert scores()["validation"]["windows"] == 64  # as many as training validates on
    assert scores(windows=10_000)["validation"]["windows"] > 64  # all there are


def test_a_text_of_its_own_is_scored_by_its_bytes(sweep, tmp_path):
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh"), 500))
    (tmp_path / "text.txt").write_text(text)
    request = Request(texts={"mine": str(tmp_path / "text.txt")}, windows=16)
    found = evaluate(sweep / "student", request, quiet=True)["student"]["scores"]["mine"]
    assert found["windows"] == -(-500 // 32)
    assert found["tokens"] == 500  # 500 bytes and the end of the document, less the first of them
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / np.log(2) * 501 / 500)
    assert found["forward_kl"] > 0


def test_questions_are_answered_by_each_run(sweep, tmp_path):
    file = tmp_path / "quiz.jsonl"
    file.write_text(json.dumps({"context": "abc", "choices": ["d", "e", "f"], "answer": 1}) + "\n")
    found = evaluate(sweep, Request(questions=[file], windows=8), quiet=True)
    for record in found.values():
        answers = record["questions"][str(file)]
        assert (answers["questions"], answers["cut"]) == (1, 0)
        assert answers["accuracy"] in (0, 1)


TASK = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_tasks_of_lm_eval_are_asked_where_it_is_installed(sweep, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.jsonl").write_text(json.dumps({"q": "abc", "choices": ["d", "e"], "gold": 0}) + "\n")
    (tmp_path / "mine.yaml").write_text(TASK.format(file=tmp_path / "mine.jsonl"))
    request = Request(windows=8, harness=["mine"], harness_tasks=tmp_path)
    found = evaluate(sweep / "teacher", request, quiet=True)["teacher"]["harness"]
    assert found["mine"]["acc,none"] in (0, 1)


def test_without_lm_eval_its_tasks_are_refused_before_anything_is_done(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "jaxdistill.evals.harness", raising=False)
    monkeypatch.delattr("jaxdistill.evals.harness", raising=False)
    with pytest.raises(InputError, match=r"pip install 'jaxdistill\[eval\]'"):
        evaluate(sweep / "teacher", Request(harness=["mine"]), quiet=True)


def test_the_files_hold_the_records(records, tmp_path):
    pytest.importorskip("matplotlib")
    paths = write(records, tmp_path / "out")
    assert [path.name for path in paths] == ["eval.json", "eval.html"]
    content = json.loads(paths[0].read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert content["runs"] == json.loads(json.dumps(records))
    assert "student" in paths[1].read_text()


def test_the_command_prints_a_table_and_leaves_files_beside_the_run(sweep, capsys):
    pytest.importorskip("matplotlib")
    assert main(["eval", str(sweep / "student"), "--windows", "8", "--bins", "5"]) == 0
    printed = capsys.readouterr().out
    assert "accept" in printed and "eval.html" in printed
    record = json.loads((sweep / "student" / "eval.json").read_text())["runs"]["student"]
    assert len(record["scores"]["validation"]["reliability"]["model"]["count"]) == 5


def test_what_is_no_finished_run_is_refused(sweep, tmp_path):
    with pytest.raises(InputError, match="neither a run directory nor holds finished runs"):
        find(tmp_path)
    copy = tmp_path / "student"
    shutil.copytree(sweep / "student", copy)
    with pytest.raises(InputError, match=r"has no finished run beside .*; name another --teacher, or none"):
        find_teacher(copy)
    (copy / rundir.RESULT).unlink()
    with pytest.raises(InputError, match="not the directory of a finished run"):
        find(copy)


def test_requests_that_mean_nothing_are_refused():
    for request in ({"windows": 0}, {"length": 0}):
        with pytest.raises(InputError, match="is 0; it must be at least 1"):
            Request(**request)
    with pytest.raises(InputError, match="has that name already"):
        Request(texts={"validation": "text.txt"})


@pytest.fixture
def imported(sweep, tmp_path):
    """The teacher, in the directory that an import makes of a model trained elsewhere."""
    teacher, tokenizer = rundir.read_config(sweep / "teacher"), data.Bytes().build(None, "")
    shape = {field.name: getattr(teacher.model, field.name) for field in dataclasses.fields(teacher.model)}
    config = Imported(
        Variant(**shape, design=teacher.model.design), family="llama", weights="0" * 16, positions=64,
        data=ElsewhereText(data.HuggingFace("tokenizer.json")), tokens={},
    )  # fmt: skip
    directory = tmp_path / "imported"
    for name in ("checkpoints", "tokenizer"):
        shutil.copytree(sweep / "teacher" / name, directory / name)
    (directory / rundir.CONFIG).write_text(text(config))
    facts = {"identity": identity(config), "N": 1, "D": None, "tokenizer": tokenizer.fingerprint}
    rundir.write_json(directory / rundir.RESULT, facts)
    return directory


def test_an_imported_model_is_scored_on_texts_that_are_named(sweep, imported, tmp_path):
    (tmp_path / "text.txt").write_text("".join(np.random.default_rng(0).choice(list("abcdefgh"), 500)))
    texts = {"mine": str(tmp_path / "text.txt")}
    found = evaluate(imported, Request(texts=texts, length=32), quiet=True)["imported"]
    own = evaluate(sweep / "teacher", Request(texts=texts), quiet=True)["teacher"]
    assert found["scores"].keys() == {"mine"}
    assert found["scores"]["mine"]["loss"] == pytest.approx(own["scores"]["mine"]["loss"], rel=500 * U)
    longer = evaluate(imported, Request(texts=texts), quiet=True)["imported"]["scores"]["mine"]
    assert longer["windows"] == -(-500 // 64)
    with pytest.raises(InputError, match="has no text of its own"):
        evaluate(imported, quiet=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "news"], "names no text"),
        (["--questions", "none.jsonl"], "cannot read the questions"),
        (["--bins", "0"], "bins is 0"),
    ],
)
def test_bad_options_are_one_sentence(sweep, capsys, arguments, words):
    assert main(["eval", str(sweep / "teacher"), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxdistill: ") and words in error and "\n" not in error


SCRIPT = """
import json, sys
from jaxdistill.evaluate import Request, evaluate
from jaxdistill.parallel.mesh import Mesh
mesh = Mesh(**json.loads(sys.argv[2]))
print(json.dumps(evaluate(sys.argv[1], Request(mesh=mesh, windows=20), quiet=True)["student"]["scores"]["validation"]))
"""


@pytest.mark.parametrize("mesh", [{"fsdp": 8}])
def test_eight_devices_find_what_one_finds(sweep, mesh):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    arguments = [sys.executable, "-c", SCRIPT, sweep / "student", json.dumps(mesh)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    one = evaluate(sweep / "student", Request(windows=20, mesh=Mesh()), quiet=True)["student"]["scores"]["validation"]
    assert found.keys() == one.keys()
    for name in found.keys() - {"reliability"}:
        # matmuls over 16 columns and sums of 640 tokens, divided otherwise
        assert found[name] == pytest.approx(one[name], rel=1000 * U), name
