"""Runs that start from the layers of another."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdistill import analysis, checkpoint, data, frozen, rundir, sweep
from jaxdistill.errors import InputError
from jaxdistill.experiment import Experiment, load_module
from jaxdistill.program import build
from jaxdistill.run import run
from jaxdistill.start import Transplanted, Truncated


def deep(tiny) -> Experiment:
    """Four layers."""
    supervised = load_module(tiny).supervised()
    return dataclasses.replace(supervised, model=dataclasses.replace(supervised.model, num_layers=4), steps=20)


def cut(source: Experiment, keep=(0, 2, 3), **changes) -> Experiment:
    start = Truncated(source, keep, **changes)
    return dataclasses.replace(source, start=start, model=start.config(source.model), steps=6, seed=1)


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    """The experiment and the directory of a finished run."""
    directory = tmp_path_factory.mktemp("start") / "source"
    run(deep(tiny), directory, quiet=True)
    return deep(tiny), directory


def first_state(experiment, directory):
    tokenizer = data.prepare(experiment.data, None, True).tokenizer
    whole = frozen.starting(directory, experiment.start, experiment, tokenizer)
    return frozen.begin(directory, experiment.start, experiment, build(experiment), whole)


def kept(layers, keep=(0, 2, 3)):
    return jax.tree.map(lambda x: np.asarray(x)[list(keep)], layers)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_the_first_state_is_the_kept_layers_and_the_embeddings_with_fresh_moments(source):
    experiment, directory = source
    whole = analysis.load_run(directory).params
    state = first_state(cut(experiment), directory)
    equal(state.params["layers"], kept(whole["layers"]))
    equal(state.params["embed_VD"], whole["embed_VD"])
    assert not any(np.any(x) for x in jax.tree.leaves(jax.device_get(state.opt)))
    assert int(state.step) == 0


def test_moments_are_carried_to_the_bit_where_asked(source):
    experiment, directory = source
    program = build(experiment)
    path = directory / "checkpoints"
    where, _ = checkpoint.Checkpoints(path, rundir.read_result(directory)["identity"]).restore(program.abstract)
    state = first_state(cut(experiment, moments=True), directory)
    _, adam = where.opt
    _, now = state.opt
    assert int(now.count) == experiment.steps
    for own, before in ((now.mu, adam.mu), (now.nu, adam.nu)):
        equal(own["layers"], kept(before["layers"]))
        equal(own["embed_VD"], before["embed_VD"])
        assert np.any(np.asarray(own["embed_VD"]))


def test_a_truncated_model_that_keeps_all_layers_begins_where_its_source_ended(source):
    experiment, directory = source
    state = first_state(cut(experiment, keep=(0, 1, 2, 3)), directory)
    equal(state.params, analysis.load_run(directory).params)


def respelt(source: Experiment, vocabulary, size: int, **changes) -> Experiment:
    start = Transplanted(source, **changes)
    tokens = dataclasses.replace(source.data, tokenizer=vocabulary)
    return dataclasses.replace(source, start=start, model=start.config(source.model, size), data=tokens, steps=6)


def test_a_transplant_to_the_same_tokenizer_is_the_model_itself(source):
    experiment, directory = source
    state = first_state(respelt(experiment, experiment.data.tokenizer, experiment.model.vocab_size), directory)
    equal(state.params, analysis.load_run(directory).params)


@pytest.mark.parametrize("fill", ["fvt", "mean", "normal"])
def test_a_transplant_keeps_all_but_the_vocabulary_and_copies_what_both_spell(source, fill):
    experiment, directory = source
    before = analysis.load_run(directory).params
    vocabulary = data.SentencePiece(280, characters=100_000)
    wanted = respelt(experiment, vocabulary, 280, fill=fill)
    tokenizer = data.prepare(wanted.data, None, True).tokenizer
    params = jax.device_get(first_state(wanted, directory).params)
    equal(params["layers"], before["layers"])
    whole, old = np.asarray(before["embed_VD"]), [bytes([byte]) for byte in range(256)]
    copied, table = 0, tokenizer.token_bytes.of_id
    for token, spelt in enumerate(table):
        if len(spelt) == 1 and spelt not in table[token + 1 :]:  # a letter, whose byte fallback comes before it
            np.testing.assert_array_equal(params["embed_VD"][token], whole[old.index(spelt)])
            copied += 1
        elif spelt and fill == "fvt":
            expected = np.mean([whole[byte] for byte in spelt], axis=0)
            np.testing.assert_allclose(params["embed_VD"][token], expected, rtol=1e-5, atol=1e-7)
    assert copied > 200
    np.testing.assert_array_equal(params["embed_VD"][tokenizer.eos_id], whole[256])


def test_a_transplant_into_another_shape_is_refused(source):
    experiment, _ = source
    with pytest.raises(InputError, match=r"model\.num_layers is 3, and 4 in what start takes"):
        dataclasses.replace(
            respelt(experiment, data.Bytes(), 257), model=dataclasses.replace(experiment.model, num_layers=3)
        )
    with pytest.raises(InputError, match=r"start\.fill is 'zero'; it must be"):
        Transplanted(experiment, "zero")


def test_a_sweep_trains_the_source_first_and_the_result_names_it(tiny, tmp_path):
    student = cut(deep(tiny))
    sweep.sweep({"student": student}, tmp_path, experiment_file=tiny, quiet=True)
    assert rundir.read_result(tmp_path / "student")["start"] == "student-start"
    assert rundir.read_result(tmp_path / "student-start")["identity"]
    assert sweep.cost(student) < sweep.cost(dataclasses.replace(deep(tiny), steps=6))  # the source is not run beside it


def test_overrides_reach_the_run_that_is_started_from(tiny):
    changed = sweep.override_all(cut(deep(tiny)), ["optim.peak=0.5"])
    assert changed.start.run.optim.peak == 0.5


def test_a_model_of_another_shape_is_refused_by_its_first_difference(source):
    experiment, _ = source
    with pytest.raises(InputError, match=r"model\.num_layers is 4, and 3 in what start takes from the model it names"):
        dataclasses.replace(cut(experiment), model=experiment.model)
    with pytest.raises(InputError, match="layer 7 is to be kept"):
        Truncated(experiment, (0, 7)).config(experiment.model)


def test_a_directory_is_held_against_the_model_too(source, tmp_path):
    experiment, directory = source
    other = dataclasses.replace(experiment, start=Truncated(str(directory), (0, 2)), steps=2)
    with pytest.raises(InputError, match=r"model\.num_layers is 4, and 2"):
        run(other, tmp_path / "run", quiet=True)
