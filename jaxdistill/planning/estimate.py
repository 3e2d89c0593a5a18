"""Seconds of a step from the facts of its program: peaks, one assumed efficiency, and two ways to overlap.

Instructions run one after another, each for as long as its matmuls take at `facts.EFFICIENCY` of the peak or its bytes
at the memory's bandwidth, whichever is longer. What is sent takes its bytes over the links of the torus that its
devices span. A collective that is started and awaited apart hides behind the instructions; any other one does not.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one step.

    Attributes:
      seconds: with what is sent hidden where the program hides it.
      at_best: with all of it hidden.
      busy, hidden, exposed: seconds of instructions, and of what is sent behind them and between them.
      mfu: useful FLOPs over what the devices could do in `seconds` at their peak.
      tokens: a second, on all devices.
    """

    seconds: float
    at_best: float
    busy: float
    hidden: float
    exposed: float
    mfu: float
    tokens: float


def of(said: Mapping[str, Any]) -> Estimate | None:
    """The estimate from a worker's answer; None where nothing was compiled, or nothing is known of the device."""
    if said["facts"] is None or said["peak"] is None:
        return None
    busy, talk = said["facts"]["busy_seconds"], said["facts"]["talk"]
    hidden = sum(line["seconds"] for line in talk if line["overlaps"])
    exposed = sum(line["seconds"] for line in talk if not line["overlaps"])
    seconds = max(busy, hidden) + exposed
    return Estimate(
        seconds=seconds,
        at_best=max(busy, hidden + exposed),
        busy=busy,
        hidden=hidden,
        exposed=exposed,
        mfu=said["model_flops"] / (said["devices"] * said["peak"] * seconds),
        tokens=said["tokens"] / seconds,
    )


def fits(said: Mapping[str, Any]) -> bool:
    """Whether the step's memory is there; True where it is not known how much there is."""
    return said["available"] is None or said["needed"] <= said["available"]
