"""Patching: a student some of whose layers are replaced by the blocks of the teacher that they stand for.

Boomerang distillation (Kangaslahti et al., arXiv 2510.05064) trains a truncated teacher so that its layer i does what
block i does. Every subset of layers then gives a model of another size without any training.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.surgery.arrays import operate
from jaxdistill.models.surgery.layers import Piece, origins, pieces
from jaxdistill.models.surgery.truncate import check_stacked, config_of_layers
from jaxdistill.models.transformer import Config, Params

INPUT = ("embed_VD", "position_PD")
OUTPUT = ("norm_D", "norm_bias_D")


def patch(
    student_config: Config,
    student_params: Params,
    teacher_config: Config,
    teacher_params: Params,
    keep: Sequence[int],
    subset: Collection[int],
) -> tuple[Config, Params]:
    """The student with the layers in `subset` replaced by whole blocks of the teacher, and its fresh parameters.

    The embedding, with learned positions, comes from whoever supplies the first layer; the last norm and the head from
    whoever supplies the last. Where these are two models the result is untied, whatever they are. Layers of two dtypes
    are joined in the wider one.

    Args:
      student_config, student_params: a model of the shape that `truncate` gives for `keep`, trained or not.
      teacher_config, teacher_params: the model that it was cut from.
      keep: the layers of the teacher that the student began with, layer 0 among them.
      subset: layers of the student, counted from 0, in any order; see `layers.last_blocks` and `layers.first_blocks`.

    InputError where student and teacher were not made for each other, or `subset` names a layer that there is not.
    """
    config = patch_config(student_config, teacher_config, keep, subset)
    for params, source in ((student_params, student_config), (teacher_params, teacher_config)):
        check_stacked(params, source.num_layers)
    plan = pieces(keep, teacher_config.num_layers, subset)

    def join(xp, student, teacher):
        first, last = (teacher if plan[end].of_teacher else student for end in (0, -1))
        ends = {name: first[name] for name in INPUT if name in first}
        ends |= {name: last[name] for name in OUTPUT if name in last}
        if not config.tied:
            ends["head_VD"] = last.get("head_VD", last["embed_VD"])  # a tied model has no head but its embedding
        ends = {name: xp.copy(x) for name, x in ends.items()}
        return ends | {dims.STACKED: _concatenate(xp, plan, student[dims.STACKED], teacher[dims.STACKED])}

    return config, operate(join, student_params, teacher_params)


def patch_config(
    student_config: Config, teacher_config: Config, keep: Sequence[int], subset: Collection[int]
) -> Config:
    """The configuration that `patch` gives, without any parameters; errors as there."""
    plan = pieces(keep, teacher_config.num_layers, subset)
    _check_made_for_each_other(student_config, teacher_config, keep)
    first = teacher_config if plan[0].of_teacher else student_config
    tied = plan[0].of_teacher == plan[-1].of_teacher and first.tied
    origin = origins(keep, teacher_config.num_layers, subset)
    return dataclasses.replace(config_of_layers(teacher_config, origin), tied=tied)


def _concatenate(xp: Any, plan: Sequence[Piece], student: Any, teacher: Any) -> Any:
    def join(own, whole):
        return xp.concatenate([(whole if p.of_teacher else own)[p.layers.start : p.layers.stop] for p in plan])

    return jax.tree.map(join, student, teacher)


def _check_made_for_each_other(student: Config, teacher: Config, keep: Sequence[int]) -> None:
    """InputError unless the student's configuration is the teacher's cut to `keep`, tied or not."""
    cut = config_of_layers(teacher, keep)
    told = "student and teacher were not made for each other"
    if type(student) is not type(teacher):
        raise InputError(f"{told}: one is a {type(student).__name__}, the other a {type(teacher).__name__}")
    for name in (field.name for field in dataclasses.fields(cut)):
        own, expected = getattr(student, name), getattr(cut, name)
        if name != "tied" and own != expected:
            raise InputError(
                f"{told}: {name} of the student is {own}, and {expected} in the teacher cut to {len(keep)} layers"
            )
