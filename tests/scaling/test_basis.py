"""Laws to plan with: the published ones with their doubts, and our own from a table or a finished fit."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.scaling import basis, laws, table
from jaxdistill.scaling.fit import fit_distillation, fit_supervised
from jaxdistill.scaling.regression import Settings
from tests.scaling.conftest import forward, laptop_rows

pytestmark = pytest.mark.xdist_group("scaling_basis")  # one worker makes the fits once
SETTINGS = Settings(delta=2e-3, starts=32, resamples=64)


def save(table, path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, table.columns)
        writer.writeheader()
        writer.writerows(table.rows())
    return path


@pytest.fixture(scope="module")
def fits(laptop):
    alone = fit_supervised(laptop, SETTINGS)
    return alone, fit_distillation(laptop, alone, SETTINGS)


@pytest.fixture(scope="module")
def own(laptop, tmp_path_factory):
    """The basis of a sweep directory whose report was made with other than the default settings."""
    directory = tmp_path_factory.mktemp("sweep")
    save(laptop, directory / "runs.csv")
    (directory / "fit.json").write_text(json.dumps({"supervised": {"settings": dataclasses.asdict(SETTINGS)}}))
    return basis.load(str(directory), resamples=48)


def test_a_directory_gives_the_laws_and_the_bootstrap_of_its_fit(own, fits):
    for law, draws, fit in zip(own.laws, own.draws, fits, strict=True):
        for field in dataclasses.fields(law):
            assert getattr(law, field.name) == pytest.approx(getattr(fit.params, field.name), rel=1e-9)
            np.testing.assert_allclose(getattr(draws, field.name), getattr(fit.draws, field.name)[:48], rtol=1e-9)
    assert "48 bootstrap resamples" in own.spread


def test_costs_and_ranges_are_those_of_the_runs(own, laptop):
    np.testing.assert_allclose(own.cost(laptop["N"]), forward(laptop["N"]), rtol=1e-9)
    assert own.runs["N"] == (1e4, 4e5) and own.search["N"] == (10.0, 4e8)
    teachers = laptop["L_T"][laptop["kind"] == "distilled"]
    assert own.runs["L_T"] == (teachers.min(), teachers.max())


def test_a_table_without_flops_costs_2n_and_says_so(laptop, tmp_path):
    columns = {name: column for name, column in laptop.columns.items() if name != "flops"}
    found = basis.load(str(save(type(laptop)(columns), tmp_path / "mine.csv")), resamples=8)
    assert found.cost(7.0) == 14.0
    assert any("lacks FLOPs" in doubt for doubt in found.doubts)


def test_parameters_that_the_runs_leave_open_are_named(tmp_path):
    noisy = table.table(laptop_rows(noise=0.05))
    (doubt,) = basis.load(str(save(noisy, tmp_path / "noisy.csv")), resamples=64).doubts
    assert doubt.startswith("The runs do not identify ") and "alpha" in doubt


def test_the_printed_b_is_doubted_in_both_published_laws():
    for law in (basis.load("published", 2), basis.load("printed", 2)):
        (doubt,) = law.doubts
        assert "24181" in doubt and "contradicts the paper's own figures" in doubt
    assert basis.load("printed", 2).laws.distillation == laws.BUSBRIDGE_DISTILLATION_PRINTED


def test_published_draws_would_be_printed_with_the_same_digits():
    draws = basis.published(resamples=500).draws
    for field, digits in (("alpha", 3), ("beta", 3), ("gamma", 3), ("E", 3), ("A", 0)):
        printed = getattr(laws.BUSBRIDGE_SUPERVISED, field)
        np.testing.assert_allclose(np.round(getattr(draws.supervised, field), digits), printed, rtol=1e-12)
    np.testing.assert_allclose(np.round(draws.distillation.d1, 3), 1.315, rtol=1e-12)
    low, high = draws.distillation.B.min(), draws.distillation.B.max()
    assert 1.9e6 <= low < 2e6 and 2.8e6 < high <= 2.9e6


def test_rounding_moves_the_loss_of_a_student_by_half_a_hundredth():
    draws = basis.printed(resamples=500).draws
    loss = draws.student(1e9, 20e9, 2.2)
    assert 0.001 < loss.std() < 0.004 and np.ptp(loss) < 0.02


def test_what_holds_no_law_is_refused_with_the_reason(laptop, tmp_path):
    for law, words in (("nothing", "there is no law 'nothing'"), (str(tmp_path), "has no table of runs")):
        with pytest.raises(InputError, match=words):
            basis.load(law)
    alone = save(laptop.finished("supervised"), tmp_path / "alone.csv")
    with pytest.raises(InputError, match="no finished distilled runs"):
        basis.load(str(alone), resamples=2)
    few = laptop.where((laptop["kind"] == "supervised") | (np.arange(len(laptop)) >= len(laptop) - 2))
    with pytest.raises(InputError, match="does not allow a distillation law"):
        basis.load(str(save(few, tmp_path / "few.csv")), resamples=2)
    save(laptop, tmp_path / "runs.csv")
    (tmp_path / "fit.json").write_text("{}")
    with pytest.raises(InputError, match="no fit that can be read"):
        basis.load(str(tmp_path))
