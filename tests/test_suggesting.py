"""From a sweep directory to the runs that are made next, by way of the command line."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from jaxdistill import analysis, config, suggesting, sweep
from jaxdistill.cli import main
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from tests.scaling.conftest import laptop_rows

FILE = """
import dataclasses
from jaxdistill.experiment import load_module
from jaxdistill.teacher import Online

tiny = load_module({tiny!r})

def config():
    return tiny.config()

def candidates():
    alone = {{f"alone-{{steps}}": dataclasses.replace(tiny.supervised(), steps=steps) for steps in (100, 400, 1600)}}
    taught = {{
        f"taught-{{name}}": dataclasses.replace(tiny.config(), steps=800, teacher=Online(teacher))
        for name, teacher in alone.items()
    }}
    return taught | alone
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny):
    """(experiment file, directory whose finished runs obey the laws of tests/scaling)."""
    directory = tmp_path_factory.mktemp("suggest")
    file = directory / "mine.py"
    file.write_text(FILE.format(tiny=str(tiny)))
    with (directory / "runs.csv").open("w", newline="") as out:
        rows = laptop_rows(noise=0.003)
        writer = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return file, directory


@pytest.fixture
def as_finished(monkeypatch, swept):
    """The table stands for run directories; the alone-400 candidate is among the finished runs."""
    finished = load_module(swept[0]).candidates()["alone-400"]
    row = {"identity": config.identity(finished), "loss": 3.0, "status": "finished"}
    monkeypatch.setattr(analysis, "write_table", lambda directory: directory / "runs.csv")
    monkeypatch.setattr(analysis, "rows", lambda directory: [row])


def test_the_command_names_the_runs_and_what_they_are_worth_and_the_next_command_runs_them(swept, as_finished, capsys):
    file, directory = swept
    arguments = ["sweep", str(file), "--out", str(directory)]
    assert main([*arguments, "--suggest", "2", "--know", "1M:20M:2.3", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "the loss at 1M:20M:2.3" in out and "90 % interval" in out and "none yet" in out
    assert f"jaxdistill sweep {file} --out {directory} --suggested" in out
    names = json.loads((directory / suggesting.FILE).read_text())
    assert "alone-400" not in names and len(names) >= 2
    assert main([*arguments, "--suggested", "--dry-run"]) == 0
    planned = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(names) <= set(planned)


def test_what_is_finished_is_not_chosen_and_a_measured_teacher_costs_nothing(swept, as_finished):
    file, directory = swept
    candidates = load_module(file).candidates()
    found = suggesting.suggest_runs(candidates, directory, number=9, resamples=200)
    assert "alone-400" not in found.names and set(found.names) == set(candidates) - {"alone-400"}
    cost = {name: sweep.cost(candidates[name]) for name in found.names}
    for step in found.plan.steps:
        assert step.flops == pytest.approx(sum(cost[found.names[run]] for run in step.runs))
    (alone,) = (step for step in found.plan.steps if found.names[step.runs[-1]] == "taught-alone-400")
    assert len(alone.runs) == 1
    deviations = [found.plan.deviation, *(step.deviation for step in found.plan.steps)]
    assert (np.diff(deviations) <= 0).all()
    low, high = found.plan.target.interval(found.plan.deviation)
    assert high > 1.001 * low  # the target that nobody named is one that the runs leave open
    assert suggesting.lines(found)[-1].endswith("narrower.")


def test_nothing_to_choose_nothing_chosen_and_unknown_names_are_refused(swept, as_finished, tmp_path):
    file, directory = swept
    candidates = load_module(file).candidates()
    with pytest.raises(InputError, match="finished every candidate"):
        suggesting.suggest_runs({"a": candidates["alone-400"]}, directory, resamples=8)
    with pytest.raises(InputError, match="do not pay for any"):
        suggesting.suggest_runs(candidates, directory, compute=1.0, resamples=8)
    with pytest.raises(InputError, match="holds no suggestion"):
        suggesting.suggested(candidates, tmp_path)
    (tmp_path / suggesting.FILE).write_text('["nobody"]')
    with pytest.raises(InputError, match="names nobody"):
        suggesting.suggested(candidates, tmp_path)
    assert main(["sweep", str(file), "--out", str(directory), "--suggest", "0"]) == 2


def test_the_candidates_of_the_shipped_sweep_hold_it_and_more(tiny):
    module = load_module(tiny.parent.parent / "experiments" / "scaling_law.py")
    own, more = module.sweep("laptop"), module.candidates("laptop")
    assert own.items() <= more.items() and len(more) > 10 * len(own)
    again = more["sup-d32-m10-again"]
    assert dataclasses.replace(again, seed=own["sup-d32-m10"].seed) == own["sup-d32-m10"]
    assert {point.steps >= 40 for point in more.values()} == {True}
