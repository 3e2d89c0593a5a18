"""A student beside the teacher it was cut from, and the models between the two."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxdistill import frozen, rundir
from jaxdistill.errors import InputError
from jaxdistill.models.surgery import layers
from jaxdistill.models.surgery.patch import patch_config
from jaxdistill.models.transformer import Config
from jaxdistill.start import START, Truncated


@dataclasses.dataclass(frozen=True)
class Pair:
    """A student and its teacher.

    Attributes:
      student, teacher: their directories; the teacher's may be of an imported model.
      student_config, teacher_config: their shapes.
      keep: the layers of the teacher that the student began with.
    """

    student: Path
    teacher: Path
    student_config: Config
    teacher_config: Config
    keep: tuple[int, ...]

    @classmethod
    def of(cls, run: str | Path, teacher: str | Path | None = None, keep: Sequence[int] | None = None) -> "Pair":
        """The pair of a run's directory.

        Args:
          run: of the student.
          teacher: the directory to take instead of the one that its start names.
          keep: the layers to take instead of those that its start names.

        Raises InputError where the run does not say what is not given, or the two were not made for each other.
        """
        experiment = rundir.read_config(Path(run))
        rundir.read_result(Path(run))  # refuses what is not finished
        start = getattr(experiment, "start", None)
        start = start if isinstance(start, Truncated) else None
        if start is None and (teacher is None or keep is None):
            raise InputError(
                f"{run} did not start from the layers of another model: name its teacher and the layers they stand for"
            )
        if teacher is None:
            teacher = frozen.find({START: experiment.sources[START]}, Path(run))[START]
        config = rundir.read_config(Path(teacher)).model
        keep = tuple(start.keep if keep is None and start is not None else keep or ())
        patch_config(experiment.model, config, keep, ())  # refuses what was not made for each other
        return cls(Path(run), Path(teacher), experiment.model, config, keep)

    def subsets(self, order: Literal["last", "first"]) -> list[tuple[int, ...]]:
        """The layers to replace for each size: none, the student itself; then blocks in this order; then all."""
        blocks = {"last": layers.last_blocks, "first": layers.first_blocks}[order]
        return [(), *(blocks(self.keep, self.num_layers, k) for k in range(1, len(self.replaceable) + 1))]

    @property
    def num_layers(self) -> int:
        """Of the teacher."""
        return self.teacher_config.num_layers

    @property
    def replaceable(self) -> tuple[int, ...]:
        """The layers of the student that stand for several of the teacher's."""
        return layers.replaceable(self.keep, self.num_layers)

    def depth(self, subset: Sequence[int]) -> int:
        """The layers of the patched model."""
        return layers.depth(self.keep, self.num_layers, subset)

    def config(self, subset: Sequence[int]) -> Config:
        """The shape of the patched model."""
        return patch_config(self.student_config, self.teacher_config, self.keep, subset)


def choose(
    pair: Pair, order: Literal["last", "first"], *, size: float | None = None, depth: int | None = None
) -> tuple[int, ...]:
    """The subset of one size: with `depth` layers, or with the number of parameters nearest to `size`.

    Raises InputError that names the range where there is no such model.
    """
    subsets = {pair.depth(subset): subset for subset in pair.subsets(order)}
    if depth is not None:
        if depth not in subsets:
            listed = ", ".join(map(str, sorted(subsets)))
            raise InputError(f"no model between student and teacher has {depth} layers; there are some of {listed}")
        return subsets[depth]
    counts = {own: pair.config(subset).num_params_total for own, subset in subsets.items()}
    smallest, largest = min(counts.values()), max(counts.values())
    if size is None or not smallest <= size <= largest:
        raise InputError(
            f"a size of {size or 0:.4g} parameters is not between student and teacher: choose {smallest:.4g} to "
            f"{largest:.4g}"
        )
    return subsets[min(counts, key=lambda own: abs(counts[own] - size))]
