"""What of a layer can be kept: its output, or something inside it, and where the scan over layers is cut for that."""

from collections.abc import Iterable

from jaxdistill.errors import InputError
from jaxdistill.models.design import Experts

Tap = tuple[str, int]
"""(name, layer)."""

OUTPUT = "output"
INSIDE = ("queries", "keys", "values", "attention")
ROUTER = "router"


def place(entry: int | Tap, config) -> Tap:
    """An entry of `keep` as (name, layer counted from 0)."""
    name, layer = (OUTPUT, entry) if isinstance(entry, int) else entry
    if not -config.num_layers <= layer < config.num_layers:
        raise InputError(f"keep={entry!r} names layer {layer} of a model with {config.num_layers} layers")
    has = (OUTPUT, *INSIDE, *([ROUTER] if isinstance(config.design.mlp, Experts) else []))
    if name not in has:
        raise InputError(f"keep={entry!r} names something that a layer of this model does not have: {', '.join(has)}")
    return name, layer % config.num_layers


def cuts(places: Iterable[Tap], num_layers: int) -> list[int]:
    """Where the scan over the layers is cut: after a layer whose output is kept, around one that is looked into."""
    found = {0, num_layers}
    for name, layer in places:
        found |= {layer + 1} if name == OUTPUT else {layer, layer + 1}
    return sorted(found)
