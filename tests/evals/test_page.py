"""The page and the tables of an evaluation."""

import re
from html.parser import HTMLParser

import pytest

from jaxdistill.evals.page import html
from jaxdistill.evals.tables import show, tables

DIAGRAM = {"count": [10.0, 0.0, 30.0], "confidence": [0.2, None, 0.9], "accuracy": [0.3, None, 0.8]}


def record(loss, teacher=None):
    scores = {"windows": 4, "tokens": 40.0, "loss": loss, "bits_per_byte": loss / 2, "entropy": 2.0, "correct": 0.25}
    scores |= {"ece": 0.1, "reliability": {"model": DIAGRAM}}
    if teacher is not None:
        scores |= {"forward_kl": 0.5, "reverse_kl": 0.6, "agreement": 0.7, "acceptance": 0.8, "teacher_loss": 1.5}
        scores["reliability"] = {"model": DIAGRAM, "teacher": DIAGRAM}
    questions = {"quiz.jsonl": {"questions": 4, "cut": 0, "accuracy": 0.5, "accuracy_per_byte": 0.75, "chance": 0.25}}
    return {
        "teacher": teacher, "scores": {"validation": scores, "news": {**scores, "loss": loss + 1}},
        "questions": questions, "harness": {"my_task": {"acc,none": 0.5}},
    }  # fmt: skip


RECORDS = {"alone <1>": record(2.5), "student": record(2.25, "big"), "other": record(2.125, "big")}


class Checker(HTMLParser):
    """Holds every tag against the one that closes it."""

    VOID = frozenset({"meta", "path", "use", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in self.VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID or tag == "rect":
            assert self.open.pop() == tag


def test_the_tables_hold_every_run_and_the_scores_that_there_are():
    scores, news, quiz, harness = tables(RECORDS)
    assert [table.title for table in (scores, news, quiz, harness)] == ["validation", "news", "quiz.jsonl", "my_task"]
    assert scores.headings[:4] == ("run", "loss", "bits/byte", "KL")
    assert scores.rows[0][:4] == ("alone <1>", "2.5000", "1.2500", "")
    assert scores.rows[1][3:7] == ("0.5000", "0.6000", "70.0%", "80.0%")
    assert "teacher's ECE" not in scores.headings  # no run has one
    assert quiz.rows[0] == ("alone <1>", "4", "50.0%", "75.0%", "25.0%", "0")
    assert harness.rows[2] == ("other", "0.5000")
    assert all(len(row) == len(table.headings) for table in tables(RECORDS) for row in table.rows)


def test_runs_without_a_teacher_have_no_columns_for_one():
    (scores, *_) = tables({"alone": record(2.5)})
    assert scores.headings == ("run", "loss", "bits/byte", "ECE", "accuracy", "entropy", "windows", "tokens")


def test_the_terminal_gets_tables_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show({"x" * 18: record(12.3456, "big")})
    printed = capsys.readouterr().out
    assert "12.3456" in printed and "80.0%" in printed and "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.fixture(scope="module")
def written():
    pytest.importorskip("matplotlib")
    return html(RECORDS)


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(written):
    checker = Checker()
    checker.feed(written)
    assert checker.open == []
    assert checker.seen.count("figure") == 2
    assert checker.seen.count("table") == 4
    references = re.findall(r'(?:href|src)="([^"]*)"', written) + re.findall(r"url\(([^)]*)\)", written)
    assert references and all(reference.startswith("#") for reference in references)
    ids = re.findall(r'\bid="([^"]*)"', written)
    assert len(ids) == len(set(ids))


def test_the_page_says_what_was_measured(written):
    assert "3 runs beside big." in written
    assert "over 3 bins" in written
    assert "alone &lt;1&gt;" in written and "alone <1>" not in written


def test_a_text_that_only_some_runs_were_scored_on_has_a_table_of_those():
    records = {**RECORDS, "imported": {**record(2.0), "scores": {"news": record(2.0)["scores"]["news"]}}}
    validation, news, *_ = tables(records)
    assert [row[0] for row in validation.rows] == ["alone <1>", "student", "other"]
    assert [row[0] for row in news.rows] == ["alone <1>", "student", "other", "imported"]


def test_questions_alone_make_a_page_without_figures():
    checker = Checker()
    checker.feed(html({"alone": {**record(2.5), "scores": {}}}))
    assert (checker.seen.count("figure"), checker.seen.count("table")) == (0, 2)


def test_one_run_alone_has_a_diagram_and_no_comparison():
    pytest.importorskip("matplotlib")
    checker = Checker()
    checker.feed(html({"alone": record(2.5)}))
    assert checker.seen.count("figure") == 1


def test_the_same_results_give_the_same_page(written):
    assert html(RECORDS) == written
