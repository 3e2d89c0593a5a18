"""What of a layer can be kept: its output, or something inside it, and where the scan over layers is cut for that."""

from collections.abc import Iterable

from jaxdistill.errors import InputError
from jaxdistill.models.design import Experts

Tap = tuple[str, int]
"""(name, layer)."""

OUTPUT = "output"
INSIDE = ("queries", "keys", "values", "attention")
ROUTER = "router"


def layer(n: int, config) -> int:
    """A layer counted from 0; InputError where there is none."""
    if not -config.num_layers <= n < config.num_layers:
        raise InputError(f"layer {n} is asked for, of a model with {config.num_layers} layers")
    return n % config.num_layers


def place(tap: Tap, config) -> Tap:
    """A tap with its layer counted from 0; InputError where the layer has no such thing."""
    name, n = tap
    has = (*INSIDE, *([ROUTER] if isinstance(config.design.mlp, Experts) else []))
    if name not in has:
        raise InputError(f"{name!r} is asked for, and a layer of this model has {', '.join(has)}")
    return name, layer(n, config)


def cuts(outputs: Iterable[Tap], parts: Iterable[Tap], num_layers: int) -> list[int]:
    """Where the scan over the layers is cut: after a layer whose output is kept, around one that is looked into."""
    return sorted({0, num_layers} | {n + 1 for _, n in outputs} | {cut for _, n in parts for cut in (n, n + 1)})
