"""The configuration kit: frozen dataclasses built in Python, with text for identity and typed overrides.

A configuration is any nest of frozen dataclasses, dicts, functions with a name, numbers and text.

    text(config)        the resolved configuration, a line a field; what a run directory keeps
    identity(config)    the digest of that text: two runs with one identity are the same run
    parse(text)         back to the dataclass
    diff(a, b)          the fields in which two configurations differ
    override(config, ["optim.peak=3e-3"])    typed by the field; misspellings are answered with the nearest names
"""

import ast
import dataclasses
import difflib
import hashlib
import importlib
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from jaxdistill.errors import InputError

EXPERIMENT_MODULE = "experiment"
"""Stands in a text for the module of the experiment file, whatever the file is called and wherever it lies."""


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path, value as text) of every field, depth first: dataclasses show their class, dicts their keys.

    A field whose metadata says "later" was added when there were runs already: it is left out while it has its default,
    so that they keep their identity.
    """
    path = prefix.removesuffix(".")
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        yield path, _reference(type(config))
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if not (field.metadata.get("later") and value == field.default):
                yield from fields(value, f"{prefix}{field.name}.")
    elif isinstance(config, Mapping):
        yield path, "dict"
        for key, value in config.items():
            yield from fields(value, f"{prefix}{key}.")
    elif callable(config):
        yield path, _reference(config)
    elif isinstance(config, (bool, int, float, str, tuple, type(None), np.generic)):
        yield path, repr(config.item() if isinstance(config, np.generic) else config)
    else:
        raise InputError(
            f"{path}: a {type(config).__name__} cannot stand in a configuration; use numbers, text or dataclasses"
        )


def _reference(thing: Any) -> str:
    if "<" in thing.__qualname__:
        raise InputError(f"{thing.__module__}: give the function {thing.__qualname__} a name; a lambda has no identity")
    module = EXPERIMENT_MODULE if thing.__module__.startswith(f"{EXPERIMENT_MODULE}_") else thing.__module__
    return f"{module}:{thing.__qualname__}"


def text(config: Any) -> str:
    """The resolved configuration, one `path = value` a line."""
    return "".join(f"{path or 'experiment'} = {value}\n" for path, value in fields(config))


def identity(config: Any) -> str:
    """Twelve hex digits of the SHA-256 of the text."""
    return hashlib.sha256(text(config).encode()).hexdigest()[:12]


def diff(a: Any, b: Any) -> list[tuple[str, str, str]]:
    """(path, value in a, value in b) of every field that differs; "-" where one of them has no such field."""
    left, right = dict(fields(a)), dict(fields(b))
    paths = list(left) + [path for path in right if path not in left]
    return [(p, left.get(p, "-"), right.get(p, "-")) for p in paths if left.get(p) != right.get(p)]


def parse(source: str, load_experiment: Callable[[], Any] | None = None) -> Any:
    """The configuration that `text` wrote.

    Args:
      source: the text.
      load_experiment: gives the module of the experiment file, called only when a class was defined there.

    A class that cannot be found becomes an `Unknown`, so that old runs stay readable. Raises InputError for other text.
    """
    lines = [line.partition(" = ")[::2] for line in source.splitlines() if line.strip()]
    if not lines or lines[0][0] != "experiment":
        raise InputError("not a configuration: its first line must be 'experiment = ...'")
    tree: dict[str, str] = {"" if path == "experiment" else path: value for path, value in lines}
    children: dict[str, list[str]] = {}
    for path in tree:
        if path:
            children.setdefault(path.rpartition(".")[0], []).append(path)

    def build(path: str) -> Any:
        value = tree[path]
        if value == "dict":
            return {child.rpartition(".")[2]: build(child) for child in children.get(path, [])}
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value):
            return ast.literal_eval(value)
        found = _resolve(value, load_experiment)
        if found is not None and not isinstance(found, type):
            return found
        arguments = {child.rpartition(".")[2]: build(child) for child in children.get(path, [])}
        return Unknown(value, arguments) if found is None else found(**arguments)

    return build("")


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Stands for an object of a stored configuration whose class is not installed here."""

    reference: str
    fields: Mapping[str, Any]


def _resolve(reference: str, load_experiment: Callable[[], Any] | None) -> Any:
    module_name, _, name = reference.partition(":")
    try:
        own = module_name == EXPERIMENT_MODULE and load_experiment is not None
        thing = load_experiment() if own else importlib.import_module(module_name)
        for part in name.split("."):
            thing = getattr(thing, part)
        return thing
    except (ImportError, AttributeError, InputError):
        return None


def override(config: Any, assignments: Iterable[str]) -> Any:
    """The configuration with every `path=value` applied. Raises InputError for a path or value that does not fit."""
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"override {assignment!r} is not of the form path=value")
        config = replace(config, path.strip(), value.strip())
    return config


def replace(config: Any, path: str, value: Any, whole: str | None = None) -> Any:
    """A copy in which the field at a dotted path has a new value: text is read by the field's type."""
    whole = whole or path
    name, _, rest = path.partition(".")
    if isinstance(config, Mapping):
        names, old = list(config), config.get(name)
    elif dataclasses.is_dataclass(config):
        names, old = [field.name for field in dataclasses.fields(config)], getattr(config, name, None)
    else:
        raise InputError(f"{whole}: {config!r} has no fields, so there is no {name!r} in it")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {', '.join(names)}"
        raise InputError(f"{whole}: there is no {name!r} in {type(config).__name__}; {hint}")
    if rest:
        new = replace(old, rest, value, whole)
    else:
        annotation = type(old) if isinstance(config, Mapping) else typing.get_type_hints(type(config))[name]
        new = read(value, annotation, old, whole)
    return {**config, name: new} if isinstance(config, Mapping) else dataclasses.replace(config, **{name: new})


def read(value: Any, annotation: Any, old: Any, path: str) -> Any:
    """`value` as the annotated type: text is parsed, a class chosen by its name where the annotation lists some."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    for kind in typing.get_args(annotation) if union else (annotation,):
        try:
            return _read_one(value, kind, old)
        except (ValueError, SyntaxError):
            continue
    wanted = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    raise InputError(f"{path}: {value!r} is not a value of type {wanted}")


def _read_one(value: Any, kind: Any, old: Any) -> Any:
    if kind is Any:
        kind = type(old) if isinstance(old, (bool, int, float, str)) else None
        kind = float if kind is int else kind
    if kind is None or kind is type(None):
        if value in (None, "None"):
            return None
        if kind is None and isinstance(value, str):
            return ast.literal_eval(value)
    elif typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
    elif kind is bool:
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
    elif kind is int and not isinstance(value, bool):
        number = float(value)  # 1e6 is a fine way to write a million
        if number == int(number):
            return int(str(value).replace("_", "")) if "e" not in str(value).lower() else int(number)
    elif kind is float and not isinstance(value, bool):
        return float(value)
    elif kind is str and isinstance(value, str):
        return value
    elif (typing.get_origin(kind) or kind) is tuple:
        items = ast.literal_eval(value) if isinstance(value, str) else value
        return tuple(items) if isinstance(items, (tuple, list)) else (items,)
    elif dataclasses.is_dataclass(kind):
        if isinstance(value, kind):
            return value
        if value == kind.__name__ and not _required(kind):
            return kind()
    raise ValueError


def _required(kind: Any) -> bool:
    missing = dataclasses.MISSING
    return any(f.default is missing and f.default_factory is missing for f in dataclasses.fields(kind))
