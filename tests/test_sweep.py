import csv
import dataclasses
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxdistill
from jaxdistill import config, rundir, sweep
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.teacher import Online


def command(*arguments):
    return [sys.executable, "-m", "jaxdistill", *map(str, arguments)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny):
    """The tiny sweep, run to its end by the command line: a teacher and two students of it."""
    directory = tmp_path_factory.mktemp("sweeps") / "tiny"
    done = subprocess.run(command("sweep", tiny, "--out", directory), capture_output=True, text=True, check=True)
    assert "3 of 3 runs finished" in done.stderr
    assert str(directory) in done.stdout.splitlines()[-1]
    return directory


def test_a_sweep_finishes_every_run_and_writes_their_table(swept, tiny):
    rows = list(csv.DictReader((swept / "runs.csv").open()))
    assert [row["run"] for row in rows] == ["student-1", "student-2", "teacher"]
    assert {row["status"] for row in rows} == {"finished"}
    assert [row["teacher"] for row in rows] == ["teacher", "teacher", ""]
    assert rows[0]["L_T"] == rows[2]["loss"]
    for column in ("tokenizer", "validation"):
        assert len({row[column] for row in rows}) == 1 and len(rows[0][column]) == 12
    assert (swept / rows[0]["directory"] / "experiment.py").read_bytes() == tiny.read_bytes()


def test_finished_work_is_never_done_again(swept, tiny):
    results = {path: path.stat().st_mtime_ns for path in swept.glob("*/result.json")}
    logs = {path: path.read_bytes() for path in swept.glob("*/log.txt")}
    subprocess.run(command("sweep", tiny, "--out", swept, "--quiet"), check=True)
    assert results == {path: path.stat().st_mtime_ns for path in swept.glob("*/result.json")}
    assert logs == {path: path.read_bytes() for path in swept.glob("*/log.txt")}


def test_a_teacher_that_no_point_trains_is_added_once(supervised, distilled):
    students = {f"s{seed}": dataclasses.replace(distilled, seed=seed) for seed in (1, 2)}
    points = sweep.with_sources(students)
    assert list(points) == ["s1-teacher", "s1", "s2"]
    assert points["s1-teacher"] == supervised
    assert sweep.with_sources(students | {"mine": supervised}) == students | {"mine": supervised}


def test_teachers_of_teachers_come_first(supervised, distilled):
    grandchild = dataclasses.replace(distilled, seed=9, teacher=Online(distilled))
    planned = sweep.plan({"g": grandchild}, "out")
    needs = {point.name: point.needs for point in planned}
    assert needs == {"g-teacher-teacher": (), "g-teacher": ("g-teacher-teacher",), "g": ("g-teacher",)}


def test_longer_runs_start_before_shorter_ones(supervised):
    points = {f"n{steps}": dataclasses.replace(supervised, steps=steps) for steps in (10, 40, 20)}
    assert [point.name for point in sweep.plan(points, "out")] == ["n40", "n20", "n10"]


def test_an_override_reaches_student_and_teacher_alike(distilled):
    changed = sweep.override_all(distilled, ["seed=5", "data.length=16"])
    assert changed.seed == changed.teacher.run.seed == 5
    assert changed.data == changed.teacher.run.data


def test_a_crash_is_retried_once_and_the_rest_finishes(tmp_path, tiny):
    """A run whose process dies (here: on a loss that raises) fails after two attempts; the others do not suffer."""
    file = tmp_path / "broken.py"
    file.write_text(
        tiny.read_text()
        + """

@dataclasses.dataclass(frozen=True)
class Broken:
    def __call__(self, z_BLV, target):
        raise RuntimeError("no such luck")


def sweep():
    broken = dataclasses.replace(supervised(), objective={"broken": Term(Broken())})
    orphan = dataclasses.replace(config(), teacher=Online(broken))
    return {"good": supervised(), "bad": broken, "orphan": orphan}
"""
    )
    done = subprocess.run(command("sweep", file, "--out", tmp_path / "out"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "2 of 3 runs did not finish" in done.stderr.splitlines()[-1]
    assert "no such luck" in done.stderr.splitlines()[-1]
    assert "started bad again" in done.stderr
    assert rundir.is_finished(tmp_path / "out" / "good")
    assert (tmp_path / "out" / "bad" / "log.txt").read_text().count("RuntimeError: no such luck") >= 2
    rows = {row["run"]: row for row in csv.DictReader((tmp_path / "out" / "runs.csv").open())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good": "finished",
        "bad": "unfinished",
        "orphan": "unfinished",
    }


def test_a_directory_of_another_experiment_stops_the_sweep_before_it_starts(swept, tiny):
    done = subprocess.run(command("sweep", tiny, "seed=3", "--out", swept), capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds another experiment" in done.stderr
    assert "started" not in done.stderr


def test_no_points_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no points"):
        sweep.sweep({}, tmp_path / "x")


def test_a_stopped_sweep_stops_its_runs(tmp_path, tiny):
    directory = tmp_path / "out"
    process = subprocess.Popen(
        command("sweep", tiny, "steps=100000", "--out", directory), stderr=subprocess.PIPE, text=True
    )
    while not list(directory.glob("*/metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    complaint = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGINT
    assert complaint.splitlines()[-1] == "jaxdistill: stopped; the same command continues"
    with rundir.lock(directory / "teacher"):
        pass  # nobody is at work there any more


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_of_a_sweep_change_nothing(tmp_path, tiny, kills):
    """kill -9 of the sweep at random moments; its runs stop with it, and the same command finishes them all."""
    start = command("sweep", tiny, "steps=300", "--processes", 2, "--quiet", "--out")
    subprocess.run([*start, tmp_path / "undisturbed"], check=True)
    moments = random.Random(1)
    for _ in range(kills):
        process = subprocess.Popen([*start, tmp_path / "disturbed"])
        time.sleep(moments.uniform(1, 12))
        process.kill()
        process.wait()
    subprocess.run([*start, tmp_path / "disturbed"], check=True)
    for name in ("teacher", "student-1", "student-2"):
        a, b = (jaxdistill.load_run(tmp_path / which / name).params for which in ("undisturbed", "disturbed"))
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_point_of_the_tiny_sweep_has_its_own_identity(tiny):
    identities = [config.identity(point) for point in load_module(tiny).sweep().values()]
    assert len(set(identities)) == len(identities)
