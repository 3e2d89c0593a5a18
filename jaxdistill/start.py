"""Where a run's parameters come from, when they are not drawn at random."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxdistill.errors import InputError
from jaxdistill.models.surgery import patterns
from jaxdistill.models.surgery.truncate import config_of_layers
from jaxdistill.models.transformer import Config

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
        expected = self.config(source)
        for name in (field.name for field in dataclasses.fields(expected)):
            if (wanted := getattr(expected, name)) != (given := getattr(model, name, None)):
                raise InputError(
                    f"model.{name} is {given}, and {wanted} in the model that start takes its {len(self.keep)} layers "
                    "from: set model=start.config(model of that run)"
                )

    def following(self, change: Callable[[Any], Any]) -> "Truncated":
        """The same with `change` applied to the Experiment it describes."""
        return dataclasses.replace(self, run=change(self.run))
