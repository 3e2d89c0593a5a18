"""Merging: one layer in the place of several, made of the parameters of them all.

LaCo (Yang, Cao & Zhao, arXiv 2402.11187) merges runs of layers for as long as the model's output hardly changes;
averages begin the models with tied layers of `recursive`.
"""

from collections.abc import Callable, Sequence

from jaxdistill.errors import InputError
from jaxdistill.models.surgery.arrays import operate
from jaxdistill.models.surgery.patterns import Keep
from jaxdistill.models.surgery.truncate import check_stacked, config_of_layers, map_layers, truncate
from jaxdistill.models.transformer import Config, Params


def average(config: Config, params: Params, groups: Sequence[Sequence[int]]) -> tuple[Config, Params]:
    """The model with one layer for each group: the mean of the group's layers, with the window of the first of them.

    `layers.blocks` and `recursive.loops` give groups. InputError where a group is empty or names a layer there is not.
    """
    layers = [n for group in groups for n in group]
    if not groups or not all(groups) or not set(layers) <= set(range(config.num_layers)):
        raise InputError(f"groups of layers to average must not be empty, and name layers below {config.num_layers}")
    check_stacked(params, config.num_layers)

    def mean(xp, x):
        return xp.stack([xp.mean(x[xp.asarray(tuple(group))], axis=0) for group in groups])

    merged = operate(lambda xp, tree: map_layers(lambda name, x: mean(xp, x), xp.copy, tree), params)
    return config_of_layers(config, [group[0] for group in groups]), merged


def merge_run(config: Config, params: Params, start: int, stop: int) -> tuple[Config, Params]:
    """The model with the layers from `start` up to `stop` merged into the first, as LaCo does.

    w = w_start + sum_k (w_k - w_start) over the layers behind it (LaCo, eq. 1); norms stay those of the first. The
    authors' notebook subtracts the layer that it is building instead, which leaves the last layer of the run; here it
    is the equation. InputError where there is no such run.
    """
    if not 0 <= start < stop <= config.num_layers:
        raise InputError(f"layers {start} to {stop - 1} cannot be merged, of a model with {config.num_layers} layers")
    check_stacked(params, config.num_layers)

    def merged(xp, name, x):
        anchor = x[start : start + 1]
        if "norm" not in name:
            anchor = anchor + xp.sum(x[start + 1 : stop] - anchor, axis=0, keepdims=True)
        return xp.concatenate([x[:start], anchor, x[stop:]])

    tree = operate(lambda xp, tree: map_layers(lambda name, x: merged(xp, name, x), xp.copy, tree), params)
    return config_of_layers(config, (*range(start + 1), *range(stop, config.num_layers))), tree


def collapse(
    config: Config,
    params: Params,
    similarity: Callable[[Config, Params], float],
    *,
    size: int,
    threshold: float,
    lowest: int = 0,
    highest: int | None = None,
    interval: int = 1,
) -> tuple[Config, Params, Keep]:
    """LaCo: from the last layers to the first, merge runs of `size` layers while the output stays similar.

    Args:
      config, params: the model.
      similarity: of a candidate to the original model, such as the mean over texts of `influence.text_cosine`; a merge
        is taken where it is above `threshold`.
      size, threshold, lowest, highest, interval: C, T, L, H and I of the paper, in layers but for T. The first run
        begins at highest - size, the last at `lowest`; the next one begins `interval` layers before a run that was
        taken, and one before a run that was not. `highest` is by default the last layer.

    Returns the configuration, its parameters, and the layers that runs were merged into or that stayed as they were.
    """
    highest = config.num_layers - 1 if highest is None else highest
    if size < 2 or interval < 1 or not 0 <= lowest <= highest < config.num_layers:
        raise InputError(
            f"LaCo merges runs of 2 layers or more, 1 layer or more apart, of layers 0 to {config.num_layers - 1}; "
            f"it got size={size}, interval={interval}, lowest={lowest}, highest={highest}"
        )
    keep, start = tuple(range(config.num_layers)), highest - size
    config, params = truncate(config, params, keep)
    while start >= lowest:
        stop = min(start + size, len(keep))
        candidate = merge_run(config, params, start, stop)
        taken = stop - start > 1 and similarity(*candidate) > threshold
        if taken:
            (config, params), keep = candidate, (*keep[: start + 1], *keep[stop:])
        start -= interval if taken else 1
    return config, params, keep
