"""Every size between a student and its teacher."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxdistill import analysis, cli
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.interpolate import curve, export
from jaxdistill.interpolate.pair import Pair, choose
from jaxdistill.models.huggingface import reading
from jaxdistill.models.surgery.patch import patch
from jaxdistill.models.transformer import Transformer
from jaxdistill.run import run
from jaxdistill.start import Truncated
from jaxdistill.teacher import Online

KEEP = (0, 2, 4, 5)  # of six layers


@pytest.fixture(scope="module")
def directory(tiny, tmp_path_factory):
    """A teacher of six layers and a student of four, each trained a little."""
    where = tmp_path_factory.mktemp("interpolate")
    small = load_module(tiny).supervised()
    teacher = dataclasses.replace(small, model=dataclasses.replace(small.model, num_layers=6), steps=60)
    start = Truncated(teacher, KEEP)
    student = dataclasses.replace(
        teacher, start=start, model=start.config(teacher.model), teacher=Online(teacher), steps=20
    )
    run(teacher, where / "teacher", quiet=True)
    run(student, where / "student", quiet=True)
    return where


@pytest.fixture(scope="module")
def scorer(directory):
    return curve.Scorer(Pair.of(directory / "student"), quiet=True)


def losses(rows):
    return [row["loss"] for row in rows]


def test_the_ends_are_the_student_and_the_teacher(directory, scorer):
    rows = curve.curve(scorer)
    ends = [analysis.load_run(directory / name).result["loss"] for name in ("student", "teacher")]
    np.testing.assert_allclose([rows[0]["loss"], rows[-1]["loss"]], ends, rtol=1e-5)
    assert rows[-1]["forward_kl"] == pytest.approx(0, abs=1e-6)
    assert [row["layers"] for row in rows] == [4, 5, 6]
    assert rows[-1]["N_total"] == analysis.load_run(directory / "teacher").experiment.model.num_params_total


def test_patching_a_student_that_was_not_trained_is_naive_pruning(directory, scorer):
    rows = curve.naive(scorer)
    untrained = Pair.of(directory / "teacher", directory / "teacher", tuple(range(6)))
    assert losses(rows)[-1] == pytest.approx(losses(curve.curve(scorer))[-1])
    assert untrained.replaceable == ()
    assert [row["layers"] for row in rows] == [4, 5, 6]
    assert losses(rows)[0] > losses(rows)[-1]


def test_first_and_last_blocks_are_other_models_and_meet_at_the_teacher(scorer):
    first, last = curve.curve(scorer, "first"), curve.curve(scorer, "last")
    assert losses(first)[1] != losses(last)[1]
    assert losses(first)[-1] == losses(last)[-1]


def test_the_greedy_order_is_never_behind_at_its_first_block(scorer):
    greedy = curve.curve(scorer, "greedy")
    singles = [scorer.patched((i,))["forward_kl"] for i in scorer.pair.replaceable]
    assert greedy[1]["forward_kl"] == min(singles)
    assert [row["layers"] for row in greedy] == [4, 5, 6]


def test_one_size_is_written_as_the_patched_model_and_read_again(directory, tmp_path):
    pair = Pair.of(directory / "student")
    subset = choose(pair, "last", depth=5)
    export.export(pair, subset, tmp_path / "five")
    student, teacher = (analysis.load_run(directory / name) for name in ("student", "teacher"))
    config, params = patch(student.model.config, student.params, teacher.model.config, teacher.params, KEEP, subset)
    source = reading.open_checkpoint(tmp_path / "five")
    read, theirs = Transformer(source.config), reading.read_params(source)
    tokens_BL = jax.random.randint(jax.random.key(0), (2, 12), 0, config.vocab_size)

    def logits(model, params):
        return model.head(params, model.hidden(params, tokens_BL)[0]).logits()[..., : config.vocab_size]

    np.testing.assert_allclose(logits(read, theirs), logits(Transformer(config), params), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "five" / "config.json").read_text())["num_hidden_layers"] == 5


def test_a_number_of_parameters_means_the_nearest_model(directory):
    pair = Pair.of(directory / "student")
    count = pair.config(choose(pair, "last", depth=5)).num_params_total
    assert choose(pair, "last", size=count + 10) == choose(pair, "last", depth=5)


@pytest.mark.parametrize("order", ["last", "first"])
def test_sizes_outside_are_refused_with_the_range(directory, order):
    pair = Pair.of(directory / "student")
    with pytest.raises(InputError, match="has 7 layers; there are some of 4, 5, 6"):
        choose(pair, order, depth=7)
    with pytest.raises(InputError, match="not between student and teacher"):
        choose(pair, order, size=1e12)


def test_models_that_were_not_made_for_each_other_are_refused(directory):
    with pytest.raises(InputError, match="did not start from the layers"):
        Pair.of(directory / "teacher")
    with pytest.raises(InputError, match="not made for each other"):
        Pair.of(directory / "student", directory / "teacher", (0, 3, 5))


def test_the_verb_scores_and_draws_and_writes_one_size(directory, tmp_path, capsys):
    assert cli.main(["interpolate", str(directory / "student"), "--out", str(tmp_path / "page"), "--quiet"]) == 0
    written = {path.name for path in (tmp_path / "page").iterdir()}
    assert written == {"interpolation.csv", "interpolation.svg", "interpolation.html"}
    assert cli.main(["interpolate", str(directory / "student"), "--layers", "5", "--out", str(tmp_path / "five")]) == 0
    assert "5 layers" in capsys.readouterr().out
    assert cli.main(["interpolate", str(directory / "student"), "--layers", "5"]) == 2
