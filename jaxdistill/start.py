"""Where a run's parameters come from, when they are not drawn at random."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax

from jaxdistill import dims
from jaxdistill.data import Tokenizer
from jaxdistill.errors import InputError
from jaxdistill.models import adapters, subwords
from jaxdistill.models.design import Subwords
from jaxdistill.models.surgery import patterns
from jaxdistill.models.surgery.truncate import config_of_layers
from jaxdistill.models.transformer import Config
from jaxdistill.models.transplant.fills import Fill, Mean, Normal
from jaxdistill.models.transplant.matching import match
from jaxdistill.models.transplant.subwords import cut, fvt
from jaxdistill.models.transplant.vocabulary import Plan, transplant, untie
from jaxdistill.models.variant import Variant

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
      untie: give a model whose output layer is its embedding one of its own, as students of bytes want it: few rows
        need not serve both ends (arXiv 2503.20083, appendix C).
      subwords: for students of bytes: also read the longest old token of at most so many bytes that ends at each byte,
        by its old embedding, which is not trained (`models.subwords`; ALM has 16). 0 for none.

    The `model` of the Experiment is `start.config(model of the run, vocab_size)`.
    """

    run: Any
    fill: Literal["fvt", "mean", "normal"] = "fvt"
    untie: bool = dataclasses.field(default=False, metadata={"later": True})
    subwords: int = dataclasses.field(default=0, metadata={"later": True})

    def __post_init__(self):
        if self.fill not in ("fvt", "mean", "normal"):
            raise InputError(f"start.fill is {self.fill!r}; it must be 'fvt', 'mean' or 'normal'")
        if self.subwords < 0:
            raise InputError(f"start.subwords is {self.subwords}; it is a number of bytes, or 0 for none")

    def config(self, source: Config, vocab_size: int) -> Config:
        """The shape of `source` with another vocabulary, and with what else this start adds."""
        changed = dataclasses.replace(source, vocab_size=vocab_size, tied=source.tied and not self.untie)
        if not self.subwords:
            return changed
        design = dataclasses.replace(source.design, subwords=Subwords(source.vocab_size, self.subwords))
        own = {field.name: getattr(changed, field.name) for field in dataclasses.fields(Config)}
        return Variant(**own, design=design)

    def params(self, source: Config, whole: dict[str, Any], old: Tokenizer, new: Tokenizer) -> dict[str, Any]:
        """The parameters of `config(source, ...)`, of those of a model `source` with the old tokenizer.

        Raises InputError where tokens have no bytes of their own, or are no bytes where subwords are asked for.
        """
        spelt, embed_VD = old.token_bytes.of_id, whole["embed_VD"]
        if self.subwords:
            subwords.check_bytes(new.token_bytes.of_id)
        if self.untie and source.tied:
            source, whole = untie(source, whole)
        made = transplant(source, whole, self.plan(old, new, tied=source.tied))[1]
        return made | ({subwords.NAME: subwords.table(spelt, embed_VD, self.subwords)} if self.subwords else {})

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


@dataclasses.dataclass(frozen=True)
class LoRA:
    """A trained model that stays as it is, with low-rank adapters that are trained (`models.adapters`).

    Gradients, moments and checkpoints are of the adapters alone, and of the embeddings where they are trained too. A
    teacher that is the same model shares its arrays with the student. A finished run holds the model with its adapters
    folded into the matrices, as any other run does.

    Attributes:
      of: the model, as `Experiment.start` takes it: `Truncated` with all layers, or `Transplanted`.
      rank: of every adapter, R. At rank and `alpha` 64 it is the one of ALM (arXiv 2503.20083).
      alpha: the adapters count alpha / rank times.
      embeddings: also train the rows of the vocabulary, as they must be where they are new.
    """

    of: Truncated | Transplanted
    rank: int = 64
    alpha: float = 64.0
    embeddings: bool = True

    def __post_init__(self):
        if self.rank < 1 or not self.alpha > 0:
            raise InputError(
                f"start.rank is {self.rank} and start.alpha {self.alpha}: they must be at least 1 and above 0"
            )
        if isinstance(self.of, Truncated) and self.of.moments:
            raise InputError("start.of.moments is set, and adapters that are new have none: unset it")

    @property
    def run(self) -> Any:
        """The run of the model."""
        return self.of.run

    @property
    def scale(self) -> float:
        """The factor on what the adapters add."""
        return self.alpha / self.rank

    def check(self, source: Config, model: Config) -> None:
        """As that of `of`."""
        self.of.check(source, model)

    def following(self, change: Callable[[Any], Any]) -> "LoRA":
        """The same with `change` applied to the Experiment it describes."""
        return dataclasses.replace(self, of=self.of.following(change))


Start = Truncated | Transplanted | LoRA


def divide(start: Start | None, params: dict[str, Any], key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that a run with this start trains, and those that stay as they are; `adapters.join` has the model.

    Args:
      start: of the run.
      params: of the model that it starts with, as `Transformer.init` gives them.
      key: of what is drawn at random.
    """
    if not isinstance(start, LoRA):
        return adapters.divide(params, lambda path: path[0] != subwords.NAME)
    trained, frozen = adapters.divide(params, lambda path: start.embeddings and "V" in dims.letters(path[-1]))
    return adapters.join(trained, adapters.fresh(key, params, start.rank)), frozen


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
