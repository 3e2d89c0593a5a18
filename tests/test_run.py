import contextlib
import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxdistill
from jaxdistill import checkpoint, config, metrics, rundir
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.losses.controllers import DistillmPhi
from jaxdistill.run import Interrupted, run


def command(*arguments):
    return [sys.executable, "-m", "jaxdistill", *map(str, arguments)]


def final_params(directory):
    return jax.tree.map(np.asarray, jaxdistill.load_run(directory).params)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """A teacher and its student, trained undisturbed: the directory that holds both."""
    root = tmp_path_factory.mktemp("finished")
    run(load_module(tiny).supervised(), root / "teacher", experiment_file=tiny, quiet=True)
    run(load_module(tiny).config(), root / "student", experiment_file=tiny, quiet=True)
    return root


def test_a_run_learns_and_leaves_what_its_contract_says(finished, supervised):
    result = rundir.read_result(finished / "teacher")
    rows = metrics.read(finished / "teacher" / "metrics.jsonl")
    assert result["loss"] < rows[0]["ce"] - 0.3
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 40]
    assert result["N"] == supervised.model.num_params
    assert result["D"] == 40 * 8 * 32
    assert rundir.read_config(finished / "teacher") == supervised
    assert {"config.txt", "experiment.py", "env.json", "tokenizer", "metrics.jsonl", "checkpoints", "result.json"} <= {
        path.name for path in (finished / "teacher").iterdir()
    }
    assert json.loads((finished / "teacher" / "env.json").read_text())["packages"]["jax"] == jax.__version__


def test_a_student_knows_its_teacher(finished):
    student, teacher = (rundir.read_result(finished / name) for name in ("student", "teacher"))
    assert student["teacher"] == "teacher"
    assert student["L_T"] == teacher["loss"]
    assert student["N_T"] == teacher["N"]
    assert 0 < student["validation"]["forward_kl"] < student["loss"]


def test_a_finished_run_is_not_touched_again(finished, supervised):
    before = {path: path.stat().st_mtime_ns for path in (finished / "teacher").rglob("*") if path.name != ".lock"}
    run(supervised, finished / "teacher", quiet=True)
    assert before == {
        path: path.stat().st_mtime_ns for path in (finished / "teacher").rglob("*") if path.name != ".lock"
    }


def test_only_the_latest_checkpoints_are_kept(finished):
    assert checkpoint.steps(finished / "teacher" / "checkpoints") == [30, 40]


def logged(directory):
    """The rows of a run's log but for the timing, which may differ."""
    rows = metrics.read(directory / "metrics.jsonl") if (directory / "metrics.jsonl").exists() else []
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]


def test_ten_kills_change_nothing(tmp_path, tiny):
    """kill -9 at random moments, in start-up and in training; the same command finishes, the same bit for bit."""
    file = tmp_path / "experiment.py"
    file.write_text(tiny.read_text() + "\nconfig = supervised\n")
    start = command("run", file, "steps=1000", "checkpoint_every=20", "--quiet", "--out")
    subprocess.run([*start, tmp_path / "undisturbed"], check=True)
    directory, moments, killed = tmp_path / "disturbed", random.Random(0), 0
    for attempt in range(10):
        enough = 0 if attempt < 3 else len(logged(directory)) + moments.randint(1, 20)
        process = subprocess.Popen([*start, directory], stderr=subprocess.DEVNULL)
        while process.poll() is None and len(logged(directory)) < enough:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 3.0 if attempt < 3 else 0.05))
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed == 10
    assert not rundir.is_finished(directory)
    subprocess.run([*start, directory], check=True)
    assert_same(final_params(directory), final_params(tmp_path / "undisturbed"))
    assert logged(directory) == logged(tmp_path / "undisturbed")


def test_sigterm_saves_and_the_same_command_continues(tmp_path, tiny, finished):
    shutil.copytree(finished / "teacher", tmp_path / "teacher")
    start = command("run", tiny, "--quiet", "--out", tmp_path / "stopped")
    process = subprocess.Popen(start, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "stopped" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    complaint = process.communicate()[1]
    if process.returncode == 0:
        pytest.skip("the run was over before the signal arrived")
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in complaint
    assert "Traceback" not in complaint
    (stopped_at,) = checkpoint.steps(tmp_path / "stopped" / "checkpoints")[-1:]
    assert 0 < stopped_at <= 40
    subprocess.run(start, check=True)
    assert_same(final_params(tmp_path / "stopped"), final_params(finished / "student"))


def test_another_experiments_directory_is_refused(finished, supervised):
    with pytest.raises(InputError, match=r"holds another experiment \(seed is 0 there and 1 here\)"):
        run(dataclasses.replace(supervised, seed=1), finished / "teacher", quiet=True)


def test_a_directory_with_other_files_is_refused(tmp_path, supervised):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not a run directory"):
        run(supervised, tmp_path, quiet=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_directory_in_use_is_refused(tmp_path, supervised):
    with rundir.lock(tmp_path / "x"), pytest.raises(InputError, match="another process is at work"):
        run(supervised, tmp_path / "x", quiet=True)


def test_a_vocabulary_that_does_not_match_is_refused(tmp_path, supervised):
    wrong = config.override(supervised, ["model.vocab_size=300"])
    with pytest.raises(InputError, match=r"tokenizer has 257 tokens and the model 300.*set model\.vocab_size=257"):
        run(wrong, tmp_path / "x", quiet=True)


def test_a_teacher_of_another_tokenizer_is_refused(tmp_path, finished, distilled):
    foreign = tmp_path / "foreign"
    shutil.copytree(finished / "teacher", foreign)
    result = rundir.read_result(foreign)
    rundir.write_json(foreign / "result.json", result | {"tokenizer": "0" * 64})
    student = dataclasses.replace(distilled, teacher=dataclasses.replace(distilled.teacher, run=str(foreign)))
    with pytest.raises(InputError, match="another tokenizer"):
        run(student, tmp_path / "student", quiet=True)


def test_a_missing_teacher_is_named(tmp_path, distilled):
    with pytest.raises(InputError, match="has no finished run beside"):
        run(distilled, tmp_path / "student", quiet=True)


def unfinished(source, target, **changes):
    """A copy of a finished run as it was before its last checkpoint."""
    shutil.copytree(source, target)
    (target / "result.json").unlink()
    shutil.rmtree(target / "checkpoints" / "40")
    return target


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path, finished, supervised):
    directory = unfinished(finished / "teacher", tmp_path / "x")
    other = dataclasses.replace(supervised, seed=5)
    rundir.write_atomically(directory / "config.txt", config.text(other))
    with pytest.raises(InputError, match="belongs to another experiment"):
        run(other, directory, quiet=True)


@pytest.mark.parametrize("damage", ["truncate", "overwrite", "remove"])
def test_a_corrupt_checkpoint_is_named_and_nothing_is_lost(tmp_path, finished, supervised, damage):
    directory = unfinished(finished / "teacher", tmp_path / "x")
    files = [path for path in (directory / "checkpoints" / "30").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    if damage == "truncate":
        largest.write_bytes(content[: len(content) // 2])
    elif damage == "overwrite":
        largest.write_bytes(b"\0" * len(content))
    else:
        largest.unlink()
    with pytest.raises(InputError, match=r"checkpoint .*30 cannot be read .*delete it"):
        run(supervised, directory, quiet=True)
    assert (directory / "metrics.jsonl").exists()
    shutil.rmtree(directory / "checkpoints" / "30")
    run(supervised, directory, quiet=True)
    assert_same(final_params(directory), final_params(finished / "teacher"))


def test_a_full_disk_is_told_before_a_checkpoint_is_begun(tmp_path, finished, supervised, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(InputError, match=r"no space left for a checkpoint .* and 0\.0 MB are free; make room"):
            run(supervised, tmp_path / "x", quiet=True)
    assert checkpoint.steps(tmp_path / "x" / "checkpoints") == []
    run(supervised, tmp_path / "x", quiet=True)
    assert_same(final_params(tmp_path / "x"), final_params(finished / "teacher"))


def test_a_run_that_diverges_says_so(tmp_path, supervised):
    wild = config.override(supervised, ["optim.peak=1e30", "optim.clip=1e30"])
    with pytest.raises(InputError, match=r"the loss is .* at step"):
        run(wild, tmp_path / "x", quiet=True)


def test_load_run_gives_any_checkpoint_without_the_training_code(finished):
    run = jaxdistill.load_run(finished / "teacher", step=30)
    assert run.step == 30
    tokens_BL = np.frombuffer(b"abcabcab", np.uint8)[None].astype(np.int32)
    h_BLD, _ = run.model.hidden(run.params, tokens_BL)
    assert run.model.head(run.params, h_BLD).logits().shape == (1, 8, 257)
    assert run.tokenizer.decode(run.tokenizer.encode("abc")) == "abc"
    with pytest.raises(InputError, match=r"no checkpoint of step 31; there are those of steps 30, 40"):
        jaxdistill.load_run(finished / "teacher", step=31)
    with pytest.raises(InputError, match="not a run directory"):
        jaxdistill.load_run(finished)


def test_load_table_is_readable_by_pandas(finished):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(jaxdistill.load_table(finished)).set_index("run")
    assert list(table.kind) == ["distilled", "supervised"]
    assert table.L_T["student"] == table.loss["teacher"]
    assert np.isnan(table.L_T["teacher"])


def test_a_run_that_is_stopped_at_every_step_makes_every_evaluation_all_the_same(tmp_path, monkeypatch, supervised):
    experiment = dataclasses.replace(supervised, steps=3, evaluate_every=1, controllers={"phi": DistillmPhi(margin=0)})

    def rows(directory):
        written = metrics.read(directory / "metrics.jsonl")
        return [(row["step"], row["validation/cross_entropy"]) for row in written if "validation/cross_entropy" in row]

    run(experiment, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        stopping = contextlib.nullcontext(lambda step: signal.SIGTERM)
        patch.setattr("jaxdistill.parallel.together.stopping", lambda: stopping)
        for step in (1, 2):
            with pytest.raises(Interrupted, match=f"stopped at step {step} of 3"):
                run(experiment, tmp_path / "stopped", quiet=True)
    run(experiment, tmp_path / "stopped", quiet=True)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole") and len(rows(tmp_path / "whole")) == 3
    assert_same(final_params(tmp_path / "stopped"), final_params(tmp_path / "whole"))
