"""Figures of an allocation show what the functions say."""

import sys

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.scaling import allocation_figures as figures
from jaxdistill.scaling import basis
from jaxdistill.scaling.allocate import Question
from jaxdistill.scaling.crossover import crossover
from jaxdistill.scaling.scenarios import BEST_CASE, BOTH, TEACHER_INFERENCE

PUBLISHED = basis.published(resamples=20)


def test_the_gain_is_drawn_to_cross_zero_where_the_crossover_is():
    below = figures.crossovers(PUBLISHED, 3e9).axes[1]
    _, best_case, inference, *_ = below.lines
    for line, scenario in ((best_case, BEST_CASE), (inference, TEACHER_INFERENCE)):
        compute, gain = line.get_data()
        crossing = compute[np.flatnonzero(gain > 0)[-1]]
        end = crossover(PUBLISHED, Question(scenario, 3e9)).supervised_from.value
        assert crossing <= end < crossing * compute[1] / compute[0] * 1.02


@pytest.fixture(scope="module")
def drawn():
    return figures.crossovers(PUBLISHED, 1e9)


def test_every_scenario_has_its_curve_and_its_band(drawn):
    above, below = drawn.axes
    names = [text.get_text() for text in above.get_legend().get_texts()]
    assert names == ["supervised", "best-case", "teacher-inference", "teacher-pretraining", "both"]
    assert len(below.collections) == 4
    for band, line in zip(below.collections, below.lines[1:], strict=True):
        inside = band.get_paths()[0].get_extents()
        finite = line.get_ydata()[np.isfinite(line.get_ydata())]
        assert inside.ymin <= finite.min() and inside.ymax >= finite.max() - 1e-3


def test_contours_have_a_panel_for_each_part_of_the_allocation():
    titles = [panel.get_title(loc="left") for panel in figures.contours(PUBLISHED, BOTH).axes]
    assert titles[:3] == ["student tokens", "teacher parameters", "teacher tokens"]
    assert titles[3:] == ["teacher loss", "student loss", "gain over supervised"]
    panel = figures.contours(PUBLISHED, TEACHER_INFERENCE).axes[2]
    assert [text.get_text() for text in panel.texts] == ["1e+17 everywhere"]


def test_a_question_gets_the_figure_that_answers_it():
    assert [len(figures.of(PUBLISHED, Question(BOTH, N_S)).axes) for N_S in (1e9, None)] == [2, 6]


@pytest.mark.parametrize("suffix", figures.FORMATS)
def test_a_figure_is_saved_with_the_same_bytes_twice(tmp_path, suffix):
    for name in ("a", "b"):
        figures.save(figures.crossovers(PUBLISHED, 1e9), tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_files_that_cannot_be_written_and_unknown_formats_are_refused(tmp_path, drawn):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        figures.save(drawn, tmp_path / "file" / "plan.svg")
    with pytest.raises(InputError, match=r"end its name in \.svg, \.pdf, \.png"):
        figures.check(tmp_path / "plan.gif")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"jaxdistill\[plots\]"):
        figures.contours(PUBLISHED, BOTH)
