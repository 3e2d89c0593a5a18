"""Which layers of a decoder to keep: functions that give the sorted tuple of kept layers, counted from 0.

The patterns of Boomerang distillation (`every_nth`) and of teacher-free truncation (Jha et al., arXiv 2305.14864: its
max-gap, input, output, middle and both; the paper shows them in a figure alone, so that what is here is read from their
names), and those that follow measured scores.
"""

import itertools
import math
from collections.abc import Sequence

from jaxdistill.errors import InputError

Keep = tuple[int, ...]
"""The kept layers of a model, sorted. One's own choice is a tuple too; `check` holds it against the model."""


def check(keep: Sequence[int], num_layers: int) -> None:
    """InputError unless `keep` names layers of a model with `num_layers`, each once, in their order."""
    if not keep:
        raise InputError("no layer is kept: name at least one")
    if wrong := [n for n in keep if not 0 <= n < num_layers]:
        raise InputError(f"layer {wrong[0]} is to be kept, of a model whose layers are 0 to {num_layers - 1}")
    if any(a >= b for a, b in itertools.pairwise(keep)):
        raise InputError(f"the kept layers {tuple(keep)} must be in ascending order, each of them once: sort them")


def every_nth(num_layers: int, n: int = 2, first: int = 1, last: int = 2) -> Keep:
    """The first of every n layers, with the `first` layers at the start and at least `last` at the end all kept.

    The last of the `first` layers opens the first block of n, and blocks follow one another while `last` layers remain
    behind them. The defaults are those of Boomerang distillation for Qwen and Pythia: of 12 layers they keep
    0, 2, 4, 6, 8, 10, 11. Llama wants first=2, last=1.
    """
    if n < 1 or first < 1 or last < 0 or first + last > num_layers:
        raise InputError(
            f"every_nth needs n >= 1, first >= 1, last >= 0 and first + last <= {num_layers}, the number of layers; "
            f"it got n={n}, first={first}, last={last}"
        )
    opens = range(first - 1, num_layers - last - n + 1, n)
    dropped = {layer for start in opens for layer in range(start + 1, start + n)}
    return tuple(layer for layer in range(num_layers) if layer not in dropped)


def max_gap(num_layers: int, size: int) -> Keep:
    """`size` layers as evenly spaced as whole numbers allow, the first and the last among them."""
    _check_size(num_layers, size)
    gaps = size - 1
    return tuple((2 * i * (num_layers - 1) + gaps) // (2 * gaps) for i in range(size))


def drop_input(num_layers: int, size: int) -> Keep:
    """`size` layers: all that go are right behind the first."""
    return _without(num_layers, size, start=1)


def drop_output(num_layers: int, size: int) -> Keep:
    """`size` layers: all that go are right before the last."""
    return _without(num_layers, size, start=size - 1)


def drop_middle(num_layers: int, size: int) -> Keep:
    """`size` layers: all that go are in the middle, or half a layer behind it."""
    return _without(num_layers, size, start=math.ceil(size / 2))


def drop_both(num_layers: int, size: int) -> Keep:
    """`size` layers: the first, the last, and those in the middle, or half a layer before it."""
    _check_size(num_layers, size)
    start = 1 + (num_layers - size) // 2
    return (0, *range(start, start + size - 2), num_layers - 1)


def highest(scores: Sequence[float], size: int) -> Keep:
    """The `size` layers of the highest score, for scores that say how much a layer matters; of equals, the earlier.

    With `influence.influence` this is ShortGPT (arXiv 2403.03853), which drops the layers that change least.
    """
    if not 1 <= size <= len(scores):
        raise InputError(f"{size} of {len(scores)} layers are to be kept: keep at least 1 and at most all")
    _check_scores(scores)
    return tuple(sorted(sorted(range(len(scores)), key=lambda layer: -scores[layer])[:size]))


def drop_run(scores: Sequence[float], num_layers: int) -> Keep:
    """All layers but one run of neighbours: the run that changes least, of equals the first.

    scores[l] says how much the run that starts at layer l changes; so there is one for each of the num_layers - n + 1
    places that a run of n layers has. With the angle between the states before and behind the run this is Gromov et al.
    (arXiv 2403.17887), with the cosine LLM-Streamline (arXiv 2403.19135): `influence.influence` of a `span` of n.
    """
    length = num_layers - len(scores) + 1
    if not 1 <= length < num_layers:
        raise InputError(f"{len(scores)} scores of runs do not fit a model of {num_layers} layers: give one a start")
    _check_scores(scores)
    start = min(range(len(scores)), key=lambda layer: scores[layer])
    return (*range(start), *range(start + length, num_layers))


def _without(num_layers: int, size: int, start: int) -> Keep:
    """`size` layers: all but a run of neighbours from `start` on."""
    _check_size(num_layers, size)
    return (*range(start), *range(start + num_layers - size, num_layers))


def _check_size(num_layers: int, size: int) -> None:
    if not 2 <= size <= num_layers:
        raise InputError(f"{size} of {num_layers} layers are to be kept: keep the first and the last, and at most all")


def _check_scores(scores: Sequence[float]) -> None:
    if wrong := [layer for layer, score in enumerate(scores) if not math.isfinite(score)]:
        raise InputError(f"the score of layer {wrong[0]} is {scores[wrong[0]]}: scores must be finite")
