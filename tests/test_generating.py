"""Text from a run on disk, and the command that prints it."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import special

import jaxdistill
from jaxdistill.cli import main
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.generate import Sampling
from jaxdistill.generating import read, texts
from jaxdistill.run import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    directory = tmp_path_factory.mktemp("run") / "teacher"
    run(dataclasses.replace(load_module(tiny).supervised(), steps=10), directory, quiet=True)
    return directory


def test_a_text_is_its_prompt_and_what_the_model_adds(finished):
    (found,) = texts(finished, ["abc"], 6, quiet=True)
    loaded = jaxdistill.load_run(finished)
    ids = list(b"abc")
    for token, logp in zip(found["ids"], found["logp"], strict=True):
        h_BLD, _ = loaded.model.hidden(loaded.params, np.array([ids], np.int32))
        logq_V = special.log_softmax(np.float64(loaded.model.head(loaded.params, h_BLD).logits())[0, -1, :257])
        assert token == logq_V.argmax()
        assert logp == pytest.approx(logq_V[token], abs=1000 * 2.0**-24)  # matmuls over at most 88 columns
        ids.append(token)
    assert found["prompt"] == "abc"
    assert found["text"] == loaded.tokenizer.decode(ids)
    assert len(found["ids"]) == 6 and not found["stopped"]


def test_draws_follow_the_seed(finished):
    one, again, other = (texts(finished, ["abc", "d"], 20, Sampling(), seed=seed, quiet=True) for seed in (1, 1, 2))
    assert one == again != other


def test_the_command_prints_text_or_json(finished, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "xyz"}\n\n')
    command = [
        "generate",
        str(finished),
        "abc",
        "--prompts",
        str(tmp_path / "prompts.jsonl"),
        "--tokens",
        "4",
        "--quiet",
    ]
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["prompt"] for one in found] == ["abc", "xyz"]
    assert plain == "".join(one["text"] + "\n" for one in found)
    assert main([*command, "--json", "--temperature", "5"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] != found


@pytest.mark.parametrize(
    ("lines", "words"),
    [('{"prompt": "a"}\n{', "line 2 is not JSON"), ('{"text": "a"}', "line 1 is not"), ('["a"]', "line 1 is not")],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, lines, words):
    (tmp_path / "prompts.jsonl").write_text(lines)
    with pytest.raises(InputError, match=words):
        read(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to do"),
        (["a", "--tokens", "0"], "nothing to do"),
        ([""], "prompt 0 is empty"),
        (["a", "--top-p", "2"], "top_p is 2.0"),
        (["--prompts", "none.jsonl"], "cannot read the prompts"),
    ],
)
def test_bad_input_is_one_sentence(finished, capsys, arguments, words):
    assert main(["generate", str(finished), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxdistill: ") and words in error and "\n" not in error


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        texts(tmp_path, ["a"], 4, quiet=True)
