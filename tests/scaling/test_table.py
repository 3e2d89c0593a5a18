"""Reading tables of runs, and refusing what is none."""

import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.scaling import table


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_needs_only_size_tokens_and_loss(tmp_path):
    runs = table.read(write(tmp_path / "runs.csv", "N,D,loss\n1e4,2e5,3.5\n20000,4e5,3.25\n"))
    assert len(runs) == 2 and len(runs.finished("supervised")) == 2 and len(runs.finished("distilled")) == 0
    np.testing.assert_array_equal(runs["N"], [1e4, 2e4])
    assert np.isnan(runs["L_T"]).all() and list(runs["teacher"]) == ["", ""]


def test_a_spreadsheets_marks_and_spaces_and_own_columns_are_read(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("N, D ,loss,mood\n1, 2 ,3, good\n", encoding="utf-8-sig")
    assert next(table.read(path).rows())["D"] == 2.0
    assert table.read(path)["mood"][0] == "good"


def test_a_data_frame_and_columns_are_tables_too(laptop):
    pandas = pytest.importorskip("pandas")
    blank = {"L_T": [None, 3.0], "kind": [None, "distilled"], "seed": [np.nan, 1]}
    runs = table.of_columns({"N": [1e4, 2e4], "D": [1e6, 1e6], "loss": [3.5, 3.2]} | blank)
    assert list(runs["kind"]) == ["supervised", "distilled"] and np.isnan(runs["seed"][0])
    frame = pandas.DataFrame(dict(laptop.columns))
    for name, column in table.of_columns(frame).columns.items():
        np.testing.assert_array_equal(column, laptop[name])
    with pytest.raises(InputError, match="run 1: D must be positive"):
        table.of_columns(pandas.DataFrame({"N": [1e4], "D": [None], "loss": [3.0]}))


def test_unfinished_runs_need_no_loss_and_are_not_fitted(tmp_path):
    runs = table.read(write(tmp_path / "r.csv", "N,D,loss,status\n1,2,3,finished\n1,2,,failed\n1,2,9,running\n"))
    assert len(runs) == 3 and len(runs.finished("supervised")) == 1


@pytest.mark.parametrize(
    "text, words",
    [
        ("N,loss\n1,2\n", "lacks the column(s) D"),
        ("N,D,loss\n", "holds no runs"),
        ("", "lacks the column(s) N, D, loss"),
        ("N,D,loss\n1,2,many\n", "loss is 'many', which is no number"),
        ("N,D,loss\n1,2\n", "do not match the header"),
        ("N,D,loss\n1,2,3,4\n", "do not match the header"),
        ("N,D,loss\n1,2,\n", "loss must be positive and finite"),
        ("N,D,loss\n1,-2,3\n", "D must be positive and finite"),
        ("N,D,loss\n1,2,nan\n", "loss must be positive and finite"),
        ("run,kind,N,D,loss\nx7,distilled,1,2,3\n", "run x7: L_T must be positive"),
        ("N,D,loss,kind\n1,2,3,selfmade\n", "kind is 'selfmade'"),
    ],
)
def test_what_is_no_table_of_runs_is_refused_with_the_reason(tmp_path, text, words):
    with pytest.raises(InputError) as error:
        table.read(write(tmp_path / "runs.csv", text))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        table.read(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="no CSV file that can be read"):
        table.read(tmp_path / "b.csv")
