"""Questions in a file of one's own: multiple choice and cloze, ranked by log-probability.

One JSON object a line, all of one kind:

  {"context": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0}
  {"text": "To be, or not to be, that is the", "answer": " question"}

Context and choice are put together as they stand: a space between them belongs to the choice.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxdistill.data import Tokenizer
from jaxdistill.errors import InputError
from jaxdistill.evals.continuations import Continuation, Likelihood, encode, likelihoods


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question with several answers, of which `choices[answer]` is right."""

    context: str
    choices: tuple[str, ...]
    answer: int

    def continuations(self, tokenizer: Tokenizer) -> list[Continuation]:
        return [encode(tokenizer, self.context, choice) for choice in self.choices]

    def right(self, found: Sequence[Likelihood], *, per_byte: bool) -> bool:
        """Whether the right choice has the highest log-probability, in all or per UTF-8 byte; in a tie the first."""
        sizes = [len(choice.encode()) if per_byte else 1 for choice in self.choices]
        worth = [one.logp / size for one, size in zip(found, sizes, strict=True)]
        return worth.index(max(worth)) == self.answer


@dataclasses.dataclass(frozen=True)
class Cloze:
    """A text whose next words, `answer`, have to be said by greedy decoding."""

    text: str
    answer: str

    def continuations(self, tokenizer: Tokenizer) -> list[Continuation]:
        return [encode(tokenizer, self.text, self.answer)]


def read(path: Path) -> list[Any]:
    """The questions of a file: all Choice or all Cloze.

    Raises InputError that names the first line that is neither, or of another kind than those before it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # splitlines would cut texts at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the questions in {path}: {error}") from error
    questions = [_question(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise InputError(f"{path} holds no questions")
    for question in questions:
        if type(question) is not type(questions[0]):
            raise InputError(f"{path} mixes multiple choice and cloze: put them into two files")
    return questions


def _question(line: str, where: str) -> Choice | Cloze:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    match fields:
        case {"context": str(context), "choices": [_, _, *_] as choices, "answer": int(answer)}:
            if not all(isinstance(choice, str) and choice for choice in choices):
                raise InputError(f"{where}: every choice must be a text")
            if not 0 <= answer < len(choices) or answer is True or answer is False:
                raise InputError(f"{where}: answer is {answer}; it is the number of a choice, counted from 0")
            return Choice(context, tuple(choices), answer)
        case {"text": str(text), "answer": str(answer)}:
            return Cloze(text, answer)
    raise InputError(
        f'{where} is neither {{"context": text, "choices": [two texts or more], "answer": number}} '
        'nor {"text": text, "answer": text}'
    )


def answer(
    questions: Sequence[Any], tokenizer: Tokenizer, on_batch: Callable[[Any], Any], **options: Any
) -> dict[str, float]:
    """What a file of questions says of a model.

    Multiple choice gives "accuracy", "accuracy_per_byte" (by log-probability per byte of the choice) and "chance", that
    of blind guessing. Cloze gives "accuracy" and "loss", the nats per token of the right answers. Both give the number
    of "questions", and in "cut" how many texts were longer than a window and lost the beginning of their context.

    Args:
      questions: as `read` gives them.
      on_batch: as for `continuations.likelihoods`.
      **options: `size`, `limit` and `track` of `continuations.likelihoods`.
    """
    items = [item for question in questions for item in question.continuations(tokenizer)]
    found = likelihoods(on_batch, items, **options)
    results = _cloze(items, found) if isinstance(questions[0], Cloze) else _choice(questions, found)
    cut = sum(len(item.ids) > options["limit"] + 1 for item in items)
    return {"questions": len(questions), "cut": cut} | results


def _cloze(items: Sequence[Continuation], found: Sequence[Likelihood]) -> dict[str, float]:
    tokens = sum(len(item.ids) - item.first for item in items)
    right = sum(one.greedy for one in found) / len(found)
    return {"accuracy": right, "loss": -sum(one.logp for one in found) / tokens}


def _choice(questions: Sequence[Choice], found: Sequence[Likelihood]) -> dict[str, float]:
    rest, right = iter(found), {"accuracy": 0, "accuracy_per_byte": 0}
    for question in questions:
        own = list(itertools.islice(rest, len(question.choices)))
        right["accuracy"] += question.right(own, per_byte=False)
        right["accuracy_per_byte"] += question.right(own, per_byte=True)
    chance = sum(1 / len(question.choices) for question in questions)
    return {name: value / len(questions) for name, value in {**right, "chance": chance}.items()}
