"""Files of questions: what is read, what is refused, and how answers are ranked."""

import json

import jax
import numpy as np
import pytest

from jaxdistill.data.tokenizers import ByteTokenizer
from jaxdistill.errors import InputError
from jaxdistill.evals.continuations import Likelihood, encode, likelihoods, make_likelihoods
from jaxdistill.evals.tasks import Choice, Cloze, answer, read
from jaxdistill.models.transformer import Config, Transformer

BYTES = ByteTokenizer()


@pytest.fixture
def file_of(tmp_path):
    def write(*lines):
        path = tmp_path / "questions.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return path

    return write


CHOICE = {"context": "The sky is", "choices": [" blue", " green"], "answer": 0}
CLOZE = {"text": "To be, or not to", "answer": " be"}


def test_a_file_of_choices_and_one_of_cloze_are_read(file_of):
    assert read(file_of(CHOICE, "", CHOICE)) == [Choice("The sky is", (" blue", " green"), 0)] * 2
    assert read(file_of(CLOZE)) == [Cloze("To be, or not to", " be")]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "holds no questions"),
        ([CHOICE, "{"], "line 2 is not JSON"),
        ([CHOICE, CLOZE], "mixes multiple choice and cloze"),
        ([{"context": "a", "choices": ["b"], "answer": 0}], "line 1 is neither"),
        ([{"question": "a"}], "line 1 is neither"),
        ([CHOICE | {"choices": [" blue", 3]}], "line 1: every choice must be a text"),
        ([CHOICE | {"answer": 2}], "line 1: answer is 2"),
        ([CHOICE | {"answer": True}], "line 1: answer is True"),
    ],
)
def test_a_line_that_is_no_question_is_named(file_of, lines, sentence):
    with pytest.raises(InputError, match=sentence):
        read(file_of(*lines))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read the questions in"):
        read(tmp_path / "none.jsonl")


def test_the_long_choice_wins_per_byte_and_the_short_one_in_all():
    question = Choice("x", ("ab", "abcdefgh"), answer=1)
    scores = [Likelihood(-4.0, False), Likelihood(-8.0, False)]  # 2 and 1 nats a byte
    assert not question.right(scores, per_byte=False)
    assert question.right(scores, per_byte=True)


def test_of_equal_choices_the_first_is_taken():
    scores = [Likelihood(-4.0, False), Likelihood(-4.0, False)]
    assert Choice("x", ("a", "b"), answer=0).right(scores, per_byte=False)
    assert not Choice("x", ("a", "b"), answer=1).right(scores, per_byte=False)


@pytest.fixture(scope="module")
def on_batch():
    model = Transformer(Config(257, 2, 16, 2, 8, 24))
    params, scores = jax.jit(model.init)(jax.random.key(0)), jax.jit(make_likelihoods(model))
    return lambda batch: scores(params, batch)


def logps(on_batch, context, texts):
    items = [encode(BYTES, context, text) for text in texts]
    return np.array([one.logp for one in likelihoods(on_batch, items, size=4, limit=64)])


def test_accuracy_is_the_share_of_questions_whose_answer_is_most_probable(on_batch):
    words = (" a", " bcd", " efghi")
    contexts = [f"question {number}:" for number in range(6)]
    per_question = [logps(on_batch, context, words) for context in contexts]
    sizes = np.array([len(word) for word in words])
    answers = [int(per_question[i].argmax()) if i < 4 else int(per_question[i].argmin()) for i in range(6)]
    questions = [Choice(context, words, right) for context, right in zip(contexts, answers, strict=True)]
    found = answer(questions, BYTES, on_batch, size=4, limit=64)
    assert found["accuracy"] == pytest.approx(4 / 6)
    per_byte = np.mean([(logp / sizes).argmax() == a for logp, a in zip(per_question, answers, strict=True)])
    assert found["accuracy_per_byte"] == pytest.approx(per_byte)
    assert found["chance"] == pytest.approx(1 / 3)
    assert (found["questions"], found["cut"]) == (6, 0)


def test_cloze_counts_greedy_answers_and_the_nats_of_their_tokens(on_batch):
    questions = [Cloze("To be, or not to", " be"), Cloze("All the world's a", " stage")]
    found = answer(questions, BYTES, on_batch, size=4, limit=64)
    total = sum(logps(on_batch, q.text, [q.answer]).sum() for q in questions)
    assert found["loss"] == pytest.approx(-total / (3 + 6))
    assert found["accuracy"] == 0  # a model that has learnt nothing
    assert found["questions"] == 2


def test_texts_longer_than_a_window_are_counted(on_batch):
    questions = [Cloze("x" * 50, " be"), Cloze("short", " be")]
    assert answer(questions, BYTES, on_batch, size=4, limit=20)["cut"] == 1
