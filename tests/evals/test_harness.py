"""lm-eval on our models: its tasks find what our own scores say. Runs where the extra `eval` is installed."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval")

from jaxdistill.data.tokenizers import ByteTokenizer
from jaxdistill.errors import InputError
from jaxdistill.evals.continuations import Continuation, encode, likelihoods, make_likelihoods
from jaxdistill.evals.harness import Model, evaluate
from jaxdistill.generate import generate, make_generate
from jaxdistill.models.transformer import Config, Transformer

BYTES, LIMIT = ByteTokenizer(), 24
TRANSFORMER = Transformer(Config(257, 2, 16, 2, 8, 24))
QUESTIONS = [("one", [" a", " bcd"], 0), ("two", [" efg", " h"], 1), ("three", [" ijkl", " m"], 0)]
TEXTS = ["To be, or not to be, that is the question: whether", "'tis nobler"]
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {directory}/choice.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {directory}/rolling.jsonl}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}]
"""
GENERATED = """
task: generated
dataset_path: json
dataset_kwargs: {{data_files: {{test: {directory}/rolling.jsonl}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: ""
generation_kwargs: {{until: ["{stop}"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    found = tmp_path_factory.mktemp("tasks")
    lines = [json.dumps({"q": q, "choices": choices, "gold": gold}) for q, choices, gold in QUESTIONS]
    (found / "choice.jsonl").write_text("\n".join(lines))
    (found / "rolling.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    (found / "choice.yaml").write_text(CHOICE.format(directory=found))
    (found / "rolling.yaml").write_text(ROLLING.format(directory=found))
    (found / "generated.yaml").write_text(GENERATED.format(directory=found, stop="never"))
    return found


@pytest.fixture(scope="module")
def params():
    return jax.jit(TRANSFORMER.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def on_batch(params):
    likelihoods_of = jax.jit(make_likelihoods(TRANSFORMER))
    return lambda batch: likelihoods_of(params, batch)


@pytest.fixture(scope="module")
def model(params, on_batch):
    def generator(sampling, max_tokens):
        return functools.partial(jax.jit(make_generate(TRANSFORMER, sampling, (256,), max_tokens)), params)

    return Model(BYTES, on_batch, size=4, limit=LIMIT, generator=generator)


@pytest.fixture(scope="module")
def found(directory, model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(directory / "cache"))
        return evaluate(model, ["choice", "rolling", "generated"], directory)


def logps(on_batch, items):
    return np.array([one.logp for one in likelihoods(on_batch, items, size=4, limit=LIMIT)])


def test_multiple_choice_is_ranked_by_our_scores(found, on_batch):
    items = [[encode(BYTES, q, choice) for choice in choices] for q, choices, _ in QUESTIONS]
    right = [logps(on_batch, own).argmax() == gold for own, (_, _, gold) in zip(items, QUESTIONS, strict=True)]
    assert found["choice"]["acc,none"] == pytest.approx(np.mean(right))


def test_a_text_is_scored_in_windows_that_share_one_token(found, on_batch):
    encoded = [BYTES.encode(text) for text in TEXTS]
    items = [Continuation(ids[i : i + LIMIT + 1], 1) for ids in encoded for i in range(0, len(ids) - 1, LIMIT)]
    assert sum(len(item.ids) - 1 for item in items) == sum(len(ids) - 1 for ids in encoded)
    bits = -logps(on_batch, items).sum() / math.log(2) / sum(map(len, encoded))
    assert found["rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)


@dataclasses.dataclass(frozen=True)
class Request:
    """What lm-eval hands over for one question."""

    args: tuple


def test_generated_text_is_that_of_our_generation_up_to_its_end(model):
    asked = {"until": [], "max_gen_toks": 8}
    contexts = [text[:10] for text in TEXTS]
    free = model.generate_until([Request((context, asked)) for context in contexts])
    encoded = [BYTES.encode(context) for context in contexts]
    texts = generate(model._generator(None, 8), encoded, max_tokens=8, size=4)
    expected = [BYTES.decode([*ids, *text.ids])[10:] for ids, text in zip(encoded, texts, strict=True)]
    assert free == expected
    end = expected[0][3]
    requests = [Request((context, {**asked, "until": until})) for context in contexts for until in ([], [end])]
    first, cut, *_ = model.generate_until(requests)  # two kinds of requests, back in their order
    assert first == expected[0]
    assert cut == expected[0][: expected[0].index(end)]


def test_a_context_longer_than_the_window_loses_its_beginning(model):
    asked = {"until": [], "max_gen_toks": 8}
    long, end = "x" * 50 + TEXTS[0], (50 * "x" + TEXTS[0])[-(LIMIT - 8) :]
    assert model.generate_until([Request((long, asked))]) == model.generate_until([Request((end, asked))])


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"num_beams": 4}, "generates with 'num_beams'"), ({"max_gen_toks": LIMIT}, "leaves no room for a context")],
)
def test_what_cannot_be_generated_is_refused(model, asked, words):
    with pytest.raises(InputError, match=words):
        model.generate_until([Request(("a", asked))])


def test_a_task_of_generated_text_is_scored(found):
    assert 0 <= found["generated"]["exact_match,none"] <= 1


def test_an_unknown_task_is_refused(directory, model):
    with pytest.raises(InputError, match="no task 'none' among those in"):
        evaluate(model, ["none"], directory)
