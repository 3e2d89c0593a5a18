"""The report: complete, self-contained, honest, whole or absent."""

import csv
import dataclasses
import html.parser
import json
import re
import sys

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.scaling import bootstrap_figures, figures, page, report
from jaxdistill.scaling.fit import NotIdentified, fit_distillation, fit_supervised
from jaxdistill.scaling.identify import Parameter
from jaxdistill.scaling.regression import Settings
from jaxdistill.scaling.table import Table

pytestmark = pytest.mark.xdist_group("scaling_report")  # one worker compiles the fits once
QUICK = Settings(starts=32, resamples=64)


def save(table, directory):
    with (directory / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table.columns)
        writer.writeheader()
        writer.writerows(table.rows())


@pytest.fixture(scope="module")
def written(laptop, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    save(laptop, directory)
    return directory, report.write(directory / "runs.csv", directory, QUICK).paths


class Page(html.parser.HTMLParser):
    """Every id and everything a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.loads, self.anchors, self.references = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif tag == "a":
                self.anchors.append(value)
            elif name in ("src", "href", "xlink:href"):
                (self.references if value.startswith("#") else self.loads).append(value)
            self.references += re.findall(r"url\((#[^)]*)\)", value or "")


def test_everything_is_written_and_nothing_half_written(written):
    directory, paths = written
    names = sorted(str(path.relative_to(directory)) for path in paths)
    drawn = ["isoflop", "agreement", "intervals", "clouds"]
    drawn = [f"supervised-{one}" for one in drawn] + [f"distilled-{one}" for one in ("teachers", *drawn[1:])]
    drawn += ["advice-crossovers", "advice-contours"]
    figures = {f"figures/{name}.{form}" for name in drawn for form in ("svg", "pdf", "png")}
    assert {"fit.json", "report.html"} | figures == set(names)
    assert sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()) == sorted(
        [*names, "runs.csv"]
    )


def test_the_page_loads_nothing_and_its_ids_are_unique(written):
    text = (written[0] / "report.html").read_text(encoding="utf-8")
    assert text.count("<figure>") == text.count("<figcaption>") == 10
    page = Page(text)
    assert page.ids and len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert all(load.startswith("data:") for load in page.loads)
    assert not re.search(r"@import|<link|url\((?!#)", text)
    assert "runs/24" in page.anchors


def test_the_numbers_are_those_of_the_fit(written, laptop):
    content = json.loads((written[0] / "fit.json").read_text(encoding="utf-8"))
    fit = fit_supervised(laptop, QUICK)
    assert content["supervised"]["params"]["alpha"] == pytest.approx(fit.params.alpha, rel=1e-6)
    assert content["supervised"]["settings"]["delta"] == QUICK.delta
    assert content["distilled"]["params"]["c1"] == "inf"
    assert sum("held_out_error" in run for run in content["distilled"]["runs"]) == 3
    assert content["versions"]["jax"]


def test_a_sweep_without_students_gets_its_report_too(laptop, tmp_path):
    save(laptop.finished("supervised"), tmp_path)
    report.write(tmp_path / "runs.csv", tmp_path, QUICK)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "supervised law" in text and "distillation law" not in text
    assert "distilled" not in json.loads((tmp_path / "fit.json").read_text())


def test_the_summary_gives_no_number_to_an_unidentified_parameter(laptop):
    fit = fit_supervised(laptop, QUICK)
    hidden = Parameter("E", 1.23456, 0.0123, 9.8765, held=False, identified=False, reason="flat; more runs would tell")
    fit = dataclasses.replace(fit, parameters=(hidden, *fit.parameters[:2]))
    text = report.summary(fit)
    assert "E: not identified by these runs (flat; more runs would tell)" in text
    assert not any(number in text for number in ("1.235", "0.0123", "9.877"))
    assert f"A = {fit.params.A:.4g}" in text
    assert "too few" in report.summary(NotIdentified("distilled", "too few"))


def test_names_from_the_table_cannot_break_the_page(laptop, tmp_path):
    alone = laptop.finished("supervised")
    alone["run"][0] = "<script>alert(1)</script>"
    save(alone, tmp_path)
    report.write(tmp_path / "runs.csv", tmp_path, QUICK)
    assert "<script>alert" not in (tmp_path / "report.html").read_text()


def test_a_table_that_cannot_be_fitted_leaves_no_report(laptop, tmp_path):
    save(laptop.where(np.arange(4)), tmp_path)
    with pytest.raises(InputError):
        report.write(tmp_path / "runs.csv", tmp_path, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]


def test_without_matplotlib_the_extra_is_named(laptop, monkeypatch):
    fit = fit_supervised(laptop, QUICK)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"jaxdistill\[plots\]"):
        figures.agreement(fit)


def test_runs_that_did_not_finish_are_counted_on_the_page(laptop):
    few = laptop.where(np.arange(len(laptop)))
    few["status"][3] = "unfinished"
    text = page.html(few, [NotIdentified("supervised", "too few")], ["too few"], {}, [])
    assert "11 supervised runs" in text and "1 of 24 runs did not finish and was set aside: s3." in text


@pytest.fixture(scope="module")
def students(laptop):
    """The distillation fit, its students called an IsoFLOP profile under each teacher."""
    fit = fit_distillation(laptop, fit_supervised(laptop, QUICK), QUICK)
    columns = {**fit.runs.columns, "protocol": np.full(len(fit.runs), "isoflop-students 1e10", dtype=object)}
    return dataclasses.replace(fit, runs=Table(columns))


def test_the_students_of_each_teacher_have_a_panel_best_teacher_first(students):
    panels = figures.isoflop(students).axes
    losses = [float(panel.get_title(loc="left").split("= ")[1]) for panel in panels]
    assert len(panels) == 4 and losses == sorted(losses)
    for panel in panels:
        name = panel.get_title(loc="left").split(",")[0]
        own = students.runs.where(students.runs["teacher"] == name)
        (points,) = (line for line in panel.lines if len(line.get_xdata()) == 3)
        assert sorted(points.get_ydata()) == sorted(own["loss"])
        (curve,) = (line for line in panel.lines if len(line.get_xdata()) > 100)
        assert own["L_T"][0] <= curve.get_ydata().min()  # by the law no student is better than its teacher


def test_every_pair_of_fitted_parameters_has_its_cloud_and_its_cross(students):
    fitted = [parameter for parameter in students.parameters if not parameter.held]
    panels = bootstrap_figures.clouds(students).axes
    assert len(panels) == len(fitted) * (len(fitted) - 1) / 2
    for panel in panels:
        draws, cross = panel.lines
        assert len(draws.get_xdata()) == QUICK.resamples and cross.get_marker() == "+"
        assert {cross.get_xdata()[0], cross.get_ydata()[0]} <= {parameter.value for parameter in fitted}


def test_an_isoflop_figure_marks_the_minimum_of_the_law_at_each_budget(laptop):
    fit = fit_supervised(laptop, QUICK)
    axes = figures.isoflop(fit).axes[0]
    rings = [line for line in axes.lines if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    curves = [line for line in axes.lines if len(line.get_xdata()) > 100]
    assert len(rings) == len(curves) == 2
    for ring, curve in zip(rings, curves, strict=True):
        assert ring.get_ydata()[0] == min(curve.get_ydata())
    with pytest.raises(InputError, match="isoflop"):
        figures.isoflop(dataclasses.replace(fit, runs=fit.runs.where(fit.runs["protocol"] == "fixed-M 20")))
