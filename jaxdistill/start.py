"""Where a run's parameters come from, when they are not drawn at random."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

from jaxdistill.data import Tokenizer
from jaxdistill.errors import InputError
from jaxdistill.models.surgery import patterns
from jaxdistill.models.surgery.truncate import config_of_layers
from jaxdistill.models.transformer import Config
from jaxdistill.models.transplant.fills import Fill, Mean, Normal
from jaxdistill.models.transplant.matching import match
from jaxdistill.models.transplant.subwords import cut, fvt
from jaxdistill.models.transplant.vocabulary import Plan

START = "start"  # the role of the run that the parameters are taken from


@dataclasses.dataclass(frozen=True)
class Truncated:
    """Some layers of a trained model, with its embeddings, last norm and head.

    The student of teacher-free truncation (Jha et al. 2023, arXiv 2305.14864) and of boomerang distillation
    (Kangaslahti et al. 2025, arXiv 2510.05064). With all layers it is a model whose training goes on.

    Attributes:
      run: the Experiment that trains the model (a sweep trains it once for all that name it), or the directory of a
        finished run or of an imported model.
      keep: its layers, ascending from 0; `models.surgery.patterns` has the usual choices.
      moments: carry the optimizer's moments of what is kept; else they start at zero. The run must have trained with
        the same kind of optimizer.

    The `model` of the Experiment is `start.config(model of the run)`.
    """

    run: Any
    keep: tuple[int, ...]
    moments: bool = False

    def config(self, source: Config) -> Config:
        """The shape that is left of `source`. InputError where it does not have these layers."""
        patterns.check(self.keep, source.num_layers)
        return config_of_layers(source, self.keep)

    def check(self, source: Config, model: Config) -> None:
        """InputError unless `model` is what is left of `source`."""
        _check_equal(self.config(source), model, "set model=start.config(model of that run)")

    def following(self, change: Callable[[Any], Any]) -> "Truncated":
        """The same with `change` applied to the Experiment it describes."""
        return dataclasses.replace(self, run=change(self.run))


@dataclasses.dataclass(frozen=True)
class Transplanted:
    """A trained model with the vocabulary of this run's tokenizer: `models.transplant` has what becomes of its rows.

    Tokens that both tokenizers have keep their rows. The others start from the mean of the old tokens that spell them
    (fast vocabulary transfer, Gee et al. 2022, arXiv 2402.09977), or without a fill of that kind as `rest` does.

    Attributes:
      run: as `Truncated.run`.
      fill: "fvt"; "mean", of all old rows (Hewitt 2021); or "normal", draws with their mean and variance.

    The `model` of the Experiment is `start.config(model of the run, vocab_size)`.
    """

    run: Any
    fill: Literal["fvt", "mean", "normal"] = "fvt"

    def __post_init__(self):
        if self.fill not in ("fvt", "mean", "normal"):
            raise InputError(f"start.fill is {self.fill!r}; it must be 'fvt', 'mean' or 'normal'")

    def config(self, source: Config, vocab_size: int) -> Config:
        """The shape of `source` with another vocabulary."""
        return dataclasses.replace(source, vocab_size=vocab_size)

    def check(self, source: Config, model: Config) -> None:
        """InputError unless `model` is `source` but for its vocabulary."""
        _check_equal(
            self.config(source, model.vocab_size), model, "set model=start.config(model of that run, vocab_size)"
        )

    def plan(self, old: Tokenizer, new: Tokenizer, *, tied: bool) -> Plan:
        """Where the rows of the new tokenizer come from, in a model whose output layer is its embedding if `tied`.

        Raises InputError where tokens have no bytes of their own.
        """
        tables = [tokenizer.token_bytes.of_id for tokenizer in (old, new)]
        copies = match(tables[0], {"eos": old.eos_id}, tables[1], {"eos": new.eos_id})
        if self.fill == "fvt":
            rows: Fill = fvt(cut(*tables, copies, functools.partial(_encode, old)))
        else:
            rows = Mean() if self.fill == "mean" else Normal()
        return Plan(copies, rows, None if tied else rows)

    def following(self, change: Callable[[Any], Any]) -> "Transplanted":
        """The same with `change` applied to the Experiment it describes."""
        return dataclasses.replace(self, run=change(self.run))


def _encode(tokenizer: Tokenizer, spelt: bytes) -> list[int]:
    """The ids that spell these bytes; none where the tokenizer has no text for them, as for half a character."""
    spelled = tokenizer.token_bytes
    try:
        text = spelt.decode()
    except UnicodeDecodeError:
        return []
    if spelled.prefix and not text.startswith(" "):
        return []
    ids = tokenizer.encode(text[spelled.prefix :]).tolist()
    return ids if b"".join(spelled.of_id[token] for token in ids) == spelt else []


def _check_equal(expected: Config, model: Config, advice: str) -> None:
    for name in (field.name for field in dataclasses.fields(expected)):
        if (wanted := getattr(expected, name)) != (given := getattr(model, name, None)):
            raise InputError(
                f"model.{name} is {given}, and {wanted} in what start takes from the model it names: {advice}"
            )
