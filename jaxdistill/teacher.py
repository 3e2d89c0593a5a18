"""Teachers: what turns a batch into a Target, outside the gradient.

The teacher is data. Its parameters are an input of the compiled step, never a variable of it, so no gradient can reach
them and none has to be stopped.
"""

import dataclasses
from typing import Any

from jaxdistill.losses.targets import Dense, Labels, Target


@dataclasses.dataclass(frozen=True)
class Online:
    """A live teacher: its forward pass runs on every batch, and the target is its whole distribution.

    Attributes:
      run: the Experiment that trains the teacher (a sweep trains it once for all students that name it), or the
        directory of a finished run.
    """

    run: Any


def make_target(model: Any | None):
    """target(params, batch) -> Target; with no model, the target is what the data says."""

    def target(params: Any, batch: Any) -> Target:
        if model is None:
            return Labels(batch.label_BL)
        h_BLC, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
        return Dense(batch.label_BL, model.head(params, h_BLC))

    return target
