"""One model between a student and its teacher as a Hugging Face directory, written without being made whole."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxdistill import analysis, dims, exchange
from jaxdistill.interpolate.pair import Pair
from jaxdistill.models.huggingface import writing
from jaxdistill.models.surgery import layers
from jaxdistill.models.surgery.patch import INPUT, OUTPUT


def export(pair: Pair, subset: Sequence[int], out: str | Path, *, shard_bytes: int = writing.SHARD_BYTES) -> str:
    """Write the student with the layers in `subset` replaced, in the teacher's dtype, and give its architecture.

    In memory are a few arrays of each and a file of `shard_bytes`.

    Raises InputError where `out` exists or no architecture of transformers computes the model.
    """
    config = pair.config(subset)
    exchange.check_exportable(config, pair.teacher)  # refuse before anything is loaded
    dtype = exchange.stored_dtype(pair.teacher)
    student, teacher = (analysis.stored_params(run, dtype) for run in (pair.student, pair.teacher))
    return exchange.write_model(
        out, config, splice(pair, student, teacher, subset), pair.teacher, shard_bytes=shard_bytes
    )


def splice(pair: Pair, student: Any, teacher: Any, subset: Sequence[int]) -> Any:
    """The parameters of `patch` with `Layers` in place of stacked arrays: nothing is copied."""
    plan = layers.pieces(pair.keep, pair.num_layers, subset)
    first, last = (teacher if plan[end].of_teacher else student for end in (0, -1))
    ends = {name: first[name] for name in INPUT if name in first}
    ends |= {name: last[name] for name in OUTPUT if name in last}
    if not pair.config(subset).tied:
        ends["head_VD"] = last.get("head_VD", last["embed_VD"])

    def stack(own: Any, whole: Any) -> Layers:
        return Layers(tuple((whole if piece.of_teacher else own, n) for piece in plan for n in piece.layers))

    return ends | {dims.STACKED: jax.tree.map(stack, student[dims.STACKED], teacher[dims.STACKED])}


@dataclasses.dataclass(frozen=True)
class Layers:
    """An array that is stacked from layers of several, and never made: `x[n]` is looked up where it lies.

    Attributes:
      sources: for each layer the array that holds it, and its place there.
    """

    sources: tuple[tuple[Any, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sources), *self.sources[0][0].shape[1:])

    @property
    def dtype(self) -> Any:
        return self.sources[0][0].dtype

    def __getitem__(self, index: tuple[int, ...]) -> Any:
        array, n = self.sources[index[0]]
        return array[(n, *index[1:])]
