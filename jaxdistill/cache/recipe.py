"""The configuration of a cache: everything that decides its content."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from jaxdistill.across import Chunking
from jaxdistill.cache.samplers import Sampler
from jaxdistill.cache.states import LastStates
from jaxdistill.data import Sequences, Tokens
from jaxdistill.errors import InputError
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.parallel.rules import Table


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a cache holds: which teacher's targets, for which tokens, cut down how.

    Attributes:
      teacher: the Experiment that trains it, or the directory of a finished run.
      data: the student's tokens; the targets of their validation windows are kept as well, except of chunks.
      keep: what is kept of the teacher's distribution; a Chunking for what one with another tokenizer says of chunks.
      windows: the first so many windows of the order of `order`, or all.
      order: the seed of the students' order, where not all windows are kept.
      seed: of the random entries.
      resolution: distance of two stored log-probabilities, in nats; draws are exact without it.
      dtype: of the teacher's activations.
      mesh, table: arrangement of the devices, and what of the teacher each axis splits.
    """

    teacher: Any
    data: Tokens
    keep: Sampler | LastStates | Chunking
    windows: int | None = None
    order: int = 0
    seed: int = 0
    resolution: float = 1 / 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    mesh: Mesh = Mesh()
    table: Table = dataclasses.field(default="axes", metadata={"later": True})

    def __post_init__(self):
        if self.windows is not None and self.windows < 1:
            raise InputError(f"windows is {self.windows}; it must be at least 1, or None for all")
        _check_resolution(self.resolution)

    @property
    def sources(self) -> dict[str, Any]:
        """What has to be run before, by role."""
        return {"teacher": self.teacher}

    @property
    def tokens(self) -> int:
        """Tokens to be read by the teacher, where that is said; 0 where it is left to the data."""
        return (self.windows or 0) * self.data.length

    @property
    def model(self) -> Any:
        """The teacher's shape, where it is described."""
        return getattr(self.teacher, "model", None)


Format = Literal["distillkit", "megatron"]


@dataclasses.dataclass(frozen=True)
class Adopted:
    """What a cache holds that was made of another system's: see `caching.adopt`.

    Attributes:
      source: the directory of that cache.
      format: what wrote it; `cache.foreign` reads it.
      data: the tokens, of a source of Sequences.
      resolution: distance of two stored log-probabilities, in nats.
    """

    source: str
    format: Format
    data: Tokens
    resolution: float = 1 / 64

    def __post_init__(self):
        if self.format not in get_args(Format):
            raise InputError(f"format is {self.format!r}; it is 'distillkit' or 'megatron'")
        if not isinstance(self.data.source, Sequences):
            raise InputError("another system's cache is about sequences of ids: let data.source be data.Sequences(...)")
        _check_resolution(self.resolution)

    @property
    def sources(self) -> dict[str, Any]:
        """What has to be run before: nothing."""
        return {}


def _check_resolution(resolution: float) -> None:
    if not 1 / 512 <= resolution <= 1:
        raise InputError(f"resolution is {resolution} nats; it must be from 1/512 to 1: 16 bits then reach 128 nats")


def is_cache(directory: Path) -> bool:
    """Whether a directory is that of a cache, finished or not."""
    config = directory / "config.txt"
    first_lines = tuple(f"experiment = {__name__}:{kind.__name__}\n" for kind in (Recipe, Adopted))
    return config.is_file() and config.read_text().startswith(first_lines)
