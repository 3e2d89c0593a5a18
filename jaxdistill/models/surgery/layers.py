"""What follows from a choice of layers: blocks, pairs, and the plans of models between student and teacher.

A student that keeps the layers l_0 = 0 < l_1 < ... of a teacher cuts its N layers into blocks, of which its own layers
are the first ones: layer i stands for the block from l_i up to l_(i+1), the last for all up to N. Layers are counted
from 0, and a `subset` is a tuple of layers of the student whose blocks the teacher is to supply.
"""

import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

from jaxdistill.errors import InputError
from jaxdistill.models.surgery.patterns import check


class Piece(NamedTuple):
    """Neighbouring layers that one model supplies."""

    of_teacher: bool
    layers: range


def blocks(keep: Sequence[int], num_layers: int) -> tuple[range, ...]:
    """The teacher's layers that each layer of the student stands for. InputError where layer 0 is not kept."""
    check(keep, num_layers)
    if keep[0] != 0:
        raise InputError(f"layers before {keep[0]} would belong to no block of the teacher: keep layer 0")
    return tuple(range(start, stop) for start, stop in itertools.pairwise((*keep, num_layers)))


def pairs(keep: Sequence[int], num_layers: int) -> tuple[tuple[int, int], ...]:
    """(layer of the student, last layer of its block): whose outputs a student is to have in common with its teacher.

    For `losses.hidden.Layers`, which counts the outputs of layers from 0 and takes them before the last norm. The
    states that enter the first layer are the output of no layer, and have no pair here; the papers count them as the
    state 0, and all others one higher.
    """
    return tuple((i, block[-1]) for i, block in enumerate(blocks(keep, num_layers)))


def replaceable(keep: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The layers of the student that stand for several of the teacher's."""
    return tuple(i for i, block in enumerate(blocks(keep, num_layers)) if len(block) > 1)


def last_blocks(keep: Sequence[int], num_layers: int, k: int) -> tuple[int, ...]:
    """The subset whose replacement gives the teacher's last k blocks of several layers, and the single ones behind.

    For the single ones the teacher supplies its own layer, and so with any of them its last norm and its head, for
    k = 0 too. With all k the subset is everything.
    """
    gaps = _gaps(keep, num_layers, k)
    stays = gaps[: len(gaps) - k]
    return tuple(range(stays[-1] + 1 if stays else 0, len(keep)))


def first_blocks(keep: Sequence[int], num_layers: int, k: int) -> tuple[int, ...]:
    """The subset whose replacement gives the teacher's first k blocks of several layers, and all single ones before
    the next. With all k the subset is everything.
    """
    stays = _gaps(keep, num_layers, k)[k:]
    return tuple(range(stays[0] if stays else len(keep)))


def pieces(keep: Sequence[int], num_layers: int, subset: Collection[int]) -> tuple[Piece, ...]:
    """The patched model from its first layer to its last: student[:16] and teacher[32:], for example.

    InputError where `subset` names a layer that the student does not have.
    """
    cut = blocks(keep, num_layers)
    if wrong := [i for i in subset if not 0 <= i < len(cut)]:
        raise InputError(f"layer {wrong[0]} is to be replaced, of a student whose layers are 0 to {len(cut) - 1}")
    found = []
    for of_teacher, group in itertools.groupby(range(len(cut)), key=lambda i: i in subset):
        own = list(group)
        layers = range(cut[own[0]].start, cut[own[-1]].stop) if of_teacher else range(own[0], own[-1] + 1)
        found.append(Piece(of_teacher, layers))
    return tuple(found)


def depth(keep: Sequence[int], num_layers: int, subset: Collection[int]) -> int:
    """The layers of the patched model: those of the student, and for each replaced one the rest of its block."""
    return sum(len(piece.layers) for piece in pieces(keep, num_layers, subset))


def origins(keep: Sequence[int], num_layers: int, subset: Collection[int]) -> tuple[int, ...]:
    """Where each layer of the patched model comes from in the teacher: naive pruning to the same depth keeps these."""
    plan = pieces(keep, num_layers, subset)
    return tuple(n for of_teacher, own in plan for n in (own if of_teacher else (keep[i] for i in own)))


def _gaps(keep: Sequence[int], num_layers: int, k: int) -> tuple[int, ...]:
    """`replaceable`, of which k are to be replaced."""
    gaps = replaceable(keep, num_layers)
    if not 0 <= k <= len(gaps):
        raise InputError(f"{k} blocks are to be replaced, and {len(gaps)} stand for several layers: take at most these")
    return gaps
