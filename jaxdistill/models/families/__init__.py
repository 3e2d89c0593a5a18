"""Families of public decoders, and named sizes of their common checkpoints: `families.llama.llama3_1_8b()`.

A family is a function from sizes to a configuration: what its members share is said once. Vocabularies are the rows of
the embeddings; an import replaces them by the size of the tokenizer.
"""

import importlib
import inspect
import pkgutil

from jaxdistill.errors import InputError
from jaxdistill.models.variant import Variant


def named(size: str) -> Variant:
    """The configuration of a named size, such as "llama3_1_8b"; InputError that lists them where there is none."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    sizes = {
        name: function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not inspect.signature(function).parameters
    }
    if size not in sizes:
        raise InputError(f"there is no named size {size!r}; there are {', '.join(sorted(sizes))}")
    return sizes[size]()
