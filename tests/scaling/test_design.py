"""Runs that cannot stand in one law are refused by name; those that did not finish are counted."""

import dataclasses

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.scaling import laws, table
from jaxdistill.scaling.design import mixed
from jaxdistill.scaling.fit import fit_distillation, fit_supervised
from tests.scaling.conftest import TRUTH, laptop_rows


def rows(**columns):
    """The laptop's runs, with further columns by the number of the run."""
    made = laptop_rows()
    for name, of in columns.items():
        for number, row in enumerate(made):
            row[name] = of(number)
    return table.table(made)


@pytest.mark.parametrize(
    "column, of, words",
    [
        ("tokenizer", lambda run: "aa11" if run < 3 else "bb22", ("2 tokenizers", "aa11: s0 and 2 more", "bb22: s3")),
        ("tokenizer", lambda run: "aa11" if run < 12 else "bb22", ("2 tokenizers", "s0 and 11 more", "d12 and 11")),
        (
            "validation",
            lambda run: "cc33" if run == 5 else "dd44",
            ("2 validation sets", "cc33: s5)", "dd44: s0 and 22 more"),
        ),
    ],
)
def test_runs_of_several_tokenizers_or_texts_are_refused_by_name(column, of, words):
    runs = rows(**{column: of})
    for fit in (fit_supervised, lambda runs: fit_distillation(runs, TRUTH)):
        with pytest.raises(InputError) as error:
            fit(runs)
        assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_only_finished_runs_that_say_what_they_were_measured_on_can_be_mixed():
    assert mixed(rows()) == mixed(rows(tokenizer=lambda run: "aa11" if run % 2 else "")) == ""
    unfinished = rows(tokenizer=lambda run: "aa11" if run else "bb22", status=lambda run: "finished" if run else "")
    unfinished["status"][0] = "unfinished"
    assert mixed(unfinished.finished(*table.KINDS)) == "" != mixed(unfinished)


def test_runs_that_did_not_finish_are_set_aside_with_their_count_and_names():
    assert rows().set_aside() == ""
    one = rows(status=lambda run: "unfinished" if run == 4 else "finished")
    assert one.set_aside() == "1 of 24 runs did not finish and was set aside: s4."
    many = rows(status=lambda run: "unfinished" if 2 <= run < 10 else "finished")
    assert many.set_aside().startswith("8 of 24 runs did not finish and were set aside: s2, s3, s4, s5, s6, ...")
    assert len(many.finished("supervised")) == 4
    with pytest.raises(InputError, match="the table has 4"):
        fit_supervised(many)


def test_a_published_law_can_stand_under_students_that_are_fitted(laptop):
    """The supervised law may come from elsewhere; the fit predicts with it."""
    alone = dataclasses.replace(TRUTH, gamma=1.0)
    fit = fit_distillation(laptop, alone)
    assert fit.alone == alone
    np.testing.assert_allclose(fit.predict(fit.runs["N"], fit.runs["D"], fit.runs["L_T"]), fit.predicted_R, rtol=1e-12)
    np.testing.assert_allclose(fit.predict(1e4, 1e6, 1e9), 1e9, rtol=1e-3)  # a hopeless teacher passes itself on
    assert laws.supervised(alone, 1e4, 1e6) > fit.predict(1e4, 1e6, fit.runs["L_T"].min())
