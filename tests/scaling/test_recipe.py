"""What people write and read: numbers with suffixes, the recipe, JSON, one sentence for bad input."""

import json

import pytest

from jaxdistill.cli import main
from jaxdistill.errors import InputError
from jaxdistill.scaling import basis, recipe
from jaxdistill.scaling.allocate import Question, allocate
from jaxdistill.scaling.crossover import compare
from jaxdistill.scaling.scenarios import BEST_CASE, BOTH, TEACHER_INFERENCE

PUBLISHED = basis.published(resamples=60)


def told(scenario, compute, **given):
    plan = allocate(PUBLISHED, Question(scenario, **given), compute)
    return recipe.summary(plan, compare(plan))


@pytest.mark.parametrize(
    "text, value",
    [
        ("3B", 3e9),
        ("1.5T", 1.5e12),
        ("1e22", 1e22),
        ("250 m", 250e6),
        ("10k", 1e4),
        ("2E+9", 2e9),
        ("7", 7),
        ("1e3K", 1e6),
    ],
)
def test_numbers_may_have_a_suffix(text, value):
    assert recipe.number(text, "--student") == value


@pytest.mark.parametrize("text", ["", "B", "3Q", "-3B", "0", "nan", "inf", "1e999", "1.2.3", "3 billion", "1e22x"])
def test_what_is_no_positive_number_is_refused_by_name(text):
    with pytest.raises(InputError, match=r"--student is .* and must be a positive number such as 3B"):
        recipe.number(text, "--student")


def test_a_recipe_says_what_to_do():
    assert "Distil: the student is expected to be better by" in told(BEST_CASE, 1e20, N_S=1e9)
    assert "Train without a teacher" in told(BOTH, 1e20, N_S=1e9)
    assert "The law does not tell which is better" in told(TEACHER_INFERENCE, 8e21, N_S=3e9)


def test_a_recipe_has_the_crossovers_the_doubt_and_the_warnings():
    text = told(TEACHER_INFERENCE, 1e22, N_S=3e9)
    for words in ("8.1e+21 FLOPs (interval:", "the start", "24181", "warning: Extrapolated", "71% student training"):
        assert words in text
    assert "give --student to learn it" in told(TEACHER_INFERENCE, 1e22)
    assert "unpaid" in told(BEST_CASE, 1e21, N_S=1e9, N_T=70e9, D_T=15e12)


def jaxdistill(capsys, *arguments):
    status = main(["allocate", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_verb_prints_json_that_holds_the_plan(capsys):
    given = ("--student", "30B", "--compute", "1e22", "--scenario", "best-case")
    status, out, _ = jaxdistill(capsys, *given, "--json")
    content = json.loads(out)
    plan = allocate(basis.published(), Question(BEST_CASE, 30e9), 1e22)
    assert status == 0
    assert content["allocation"]["N_S"] == [30e9] * 3
    assert content["allocation"]["loss"] == pytest.approx(list(plan.allocation.loss), rel=1e-12)
    assert content["scenarios"]["best-case"]["supervised_from"][0] == "inf"
    assert sum(content["shares"].values()) == pytest.approx(1)


def test_the_verb_draws_the_figure_it_is_asked_for(capsys, tmp_path):
    file = tmp_path / "new" / "plan.svg"
    status, _, _ = jaxdistill(capsys, "--student", "1B", "--compute", "1e21", "--figure", str(file))
    assert status == 0 and file.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--compute", "much"), "--compute is 'much'"),
        (("--compute", "1e21", "--teacher-tokens", "-1"), "--teacher-tokens is '-1'"),
        (("--compute", "1e21", "--scenario", "free"), "no scenario 'free'"),
        (("--compute", "1e21", "--law", "no/such"), "no law 'no/such'"),
        (("--compute", "1e21", "--figure", "plan.gif"), "plan.gif is no figure"),
        (("--compute", "1e3", "--student", "1B"), "do not pay for one token"),
        (("--compute", "1e21", "--students", "0"), "0 students cannot share"),
        (
            ("--compute", "1e30", "--student", "1e18", "--scenario", "best-case"),
            "beyond anything this law can speak of",
        ),
    ],
)
def test_bad_input_is_answered_with_one_sentence_and_status_2(capsys, arguments, words):
    status, out, error = jaxdistill(capsys, *arguments)
    assert status == 2 and out == ""
    assert words in error and len(error.strip().splitlines()) == 1
