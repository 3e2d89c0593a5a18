"""The report is made from the committed results: what takes half an hour to measure is not measured again here."""

import csv
import pathlib

import pytest

from jaxdistill import config
from jaxdistill.experiment import load_module
from jaxdistill.sweep import cost

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = load_module(ROOT / "experiments" / "teacher_free.py")
WORDS = ("run", "protocol", "pattern")


def read(path):
    with open(path) as file:
        return [
            {name: value if name in WORDS else float(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def rows():
    return read(ROOT / "experiments" / "results" / "teacher_free.csv")


def test_the_teacher_is_the_one_of_boomerang_so_that_one_run_serves_both():
    boomerang = load_module(ROOT / "experiments" / "boomerang.py")
    assert config.identity(EXPERIMENT.teacher()) == config.identity(boomerang.teacher())


def test_the_patterns_differ_in_their_layers_and_not_in_their_depth():
    kept = EXPERIMENT.PATTERNS.values()
    assert len(set(kept)) == len(kept)
    assert all(len(keep) == EXPERIMENT.SIZE and keep[0] == 0 for keep in kept)


def test_a_teacher_beside_the_student_costs_one_of_its_forward_passes_and_a_cached_one_nothing():
    of = {arm.__name__: cost(arm(300, 1e-2)) for arm in EXPERIMENT.PEAKS}
    forward = cost(EXPERIMENT.teacher()) / EXPERIMENT.teacher().tokens / 3  # FLOPs a token
    assert of["online"] - of["truncated"] == pytest.approx(forward * EXPERIMENT.truncated(300, 1e-2).tokens, rel=1e-12)
    assert of["cached"] == of["truncated"] == of["random"]


def test_the_results_are_those_of_the_sweep_and_the_report_shows_them_all(rows, tmp_path):
    assert {row["run"] for row in rows} == EXPERIMENT.sweep().keys()
    table, *figures, page = EXPERIMENT.write(rows, tmp_path)
    assert read(table) == rows
    assert all(figure.read_text().startswith("<?xml") for figure in figures)
    assert all(f">{row['run']}<" in page.read_text() for row in rows)


@pytest.mark.parametrize("arm", EXPERIMENT.ARMS)
def test_a_curve_has_the_best_peak_of_every_budget_and_nothing_of_other_seeds_or_layers(rows, arm):
    curve = EXPERIMENT.curve(rows, arm)
    assert [row["steps"] for row in curve] == sorted({row["steps"] for row in rows if row["protocol"] == arm})
    for chosen in curve:
        assert chosen["seed"] == EXPERIMENT.SEEDS[0] and chosen["pattern"] == ("" if arm == "random" else "max-gap")
        alike = ("protocol", "pattern", "steps", "seed")
        rivals = [row for row in rows if all(row[name] == chosen[name] for name in alike)]
        assert chosen["loss"] == min(row["loss"] for row in rivals)
