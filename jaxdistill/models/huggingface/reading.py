"""From a Hugging Face directory to a configuration and parameters, checked whole before anything is read."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.huggingface.attributes import HARMLESS, Attributes, read_json
from jaxdistill.models.huggingface.families import FAMILIES
from jaxdistill.models.huggingface.family import Family
from jaxdistill.models.huggingface.files import DTYPES, Tensor, list_tensors
from jaxdistill.models.huggingface.tables import Row, by_tensor
from jaxdistill.models.transformer import Params, Transformer
from jaxdistill.models.variant import Variant


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that is understood: its configuration fits its tensors, one for one.

    Attributes:
      config: the model. Its `vocab_size` is the number of rows of the embedding, as far as config.json says.
      family: of the checkpoint.
      positions: `max_position_embeddings`, the longest context it is made for; None where it is not said.
      dtype: that holds all of its tensors exactly.
      tensors: by name as the family's table has them.
    """

    config: Variant
    family: Family
    positions: int | None
    dtype: Any
    tensors: Mapping[str, Tensor]

    def with_vocab_size(self, vocab_size: int) -> "Source":
        """The same with the size of the tokenizer; InputError where the embedding has not as many rows."""
        if vocab_size > (rows := self.config.vocab_size):
            raise InputError(
                f"the tokenizer has {vocab_size} tokens and the embedding {rows} rows: they do not belong together"
            )
        return dataclasses.replace(self, config=dataclasses.replace(self.config, vocab_size=vocab_size))


def open_checkpoint(directory: str | Path) -> Source:
    """Read what a checkpoint is, without its values.

    Raises InputError, one sentence, for a family or an attribute that is not understood, a file that is missing or cut
    short, and tensors that are missing, unexpected, of another shape, or of a dtype that is none of float32, bfloat16
    and float16.
    """
    directory = Path(directory)
    values = read_json(directory / "config.json")
    family = _family(values.pop("model_type", None), directory)
    attributes = Attributes(values, str(directory / "config.json"))
    positions = values.get("max_position_embeddings", values.get("n_positions"))
    config = family.read(attributes)
    attributes.finish(HARMLESS | {"max_position_embeddings"})
    tensors = _fit(list_tensors(directory), family, config, directory)
    dtype = jnp.result_type(*{_dtype(tensor) for tensor in tensors.values()})
    return Source(config, family, positions, dtype, tensors)


def _family(model_type: Any, directory: Path) -> Family:
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise InputError(f"{directory} holds a model of type {model_type!r}; those that are understood are {known}")


def _dtype(tensor: Tensor) -> Any:
    if tensor.dtype not in DTYPES:
        raise InputError(f"{tensor.file}: {tensor.name} is stored as {tensor.dtype}; only {', '.join(DTYPES)} are read")
    return jnp.dtype(DTYPES[tensor.dtype])


def _fit(found: Mapping[str, Tensor], family: Family, config: Variant, directory: Path) -> dict[str, Tensor]:
    """The tensors by the names of the table, held against it."""
    rows, sizes = family.rows(config), theirs(config)
    expected = {name: entries[0][0] for name, entries in by_tensor(rows, sizes).items()}
    bare = not any(name.startswith(family.prefix) for name in found)  # saved without its output layer
    passed_over = {"lm_head.weight", "embed_out.weight"} - set(expected)  # tied: a copy of the embedding
    tensors = {
        family.prefix + name if bare and family.prefix + name in expected else name: tensor
        for name, tensor in found.items()
        if name not in passed_over and not name.endswith(family.buffers)
    }
    if missing := sorted(set(expected) - set(tensors)):
        raise InputError(
            f"{directory} lacks {missing[0]} ({len(missing)} tensors in all), which its config.json asks for"
        )
    if unexpected := sorted(set(tensors) - set(expected)):
        raise InputError(
            f"{directory} has {unexpected[0]} ({len(unexpected)} tensors in all), which its config.json does not name"
        )
    for name, row in expected.items():
        if tensors[name].shape != row.shape(sizes):
            raise InputError(
                f"{directory}: {name} has the shape {list(tensors[name].shape)}, and by config.json it is "
                f"{list(row.shape(sizes))}"
            )
    return tensors


def theirs(config: Variant) -> dict[str, int]:
    """The sizes of their tensors: their vocabulary has no padding."""
    return {**config.dims, "V": config.vocab_size}


def read_params(source: Source, shardings: Any = None, dtype: Any = None) -> Params:
    """The parameters, in `dtype` or else the checkpoint's own. Rows of the padded vocabulary are zero.

    They are written tensor by tensor into their final place, so nothing is held twice: into arrays that lie where
    `shardings` (a tree of the parameters' structure) says, or into NumPy arrays where it is None.
    """
    config, sizes = source.config, {**theirs(source.config), "V": _embedding_rows(source)}
    dtype = source.dtype if dtype is None else jnp.dtype(dtype)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    rows = {row.ours: row for row in source.family.rows(config)}
    places = [None] * len(rows) if shardings is None else jax.tree.leaves(shardings)
    leaves = []
    for (path, _, shape), place in zip(dims.leaves(shapes), places, strict=True):
        entries = _entries(rows[path], source, sizes, dtype)
        fill = _fill_host if place is None else functools.partial(_fill_devices, place=place)
        leaves.append(fill(shape.shape, dtype, entries))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _embedding_rows(source: Source) -> int:
    row = next(row for row in source.family.rows(source.config) if row.ours == "embed_VD")
    return source.tensors[row.theirs].shape[0]


Entries = Iterator[tuple[tuple[int, ...], np.ndarray]]


def _entries(row: Row, source: Source, sizes: Mapping[str, int], dtype: Any) -> Entries:
    """(index, values in our layout) of everything that makes up one of our arrays, read when it is asked for."""
    for index, name in row.entries(sizes):
        entry = row.to_ours(source.tensors[name].read(), sizes)
        yield index, (entry[: source.config.vocab_size] if row.own.startswith("V") else entry).astype(dtype, copy=False)


def _fill_host(shape: tuple[int, ...], dtype: Any, entries: Entries) -> np.ndarray:
    array = np.zeros(shape, dtype)
    for index, entry in entries:
        array[index][: len(entry)] = entry
    return array


def _fill_devices(shape: tuple[int, ...], dtype: Any, entries: Entries, place: Any) -> jax.Array:
    array = jnp.zeros(shape, dtype, device=place)
    for index, entry in entries:
        array = _put(array, np.ascontiguousarray(entry), index, place)
    return array


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _put(array: jax.Array, entry: Any, index: tuple[int, ...], place: Any) -> jax.Array:
    """`array` with `entry` at `index`, in place; the entry may be shorter than what is there."""
    start = [*index, *[0] * (array.ndim - len(index))]
    after = jax.lax.dynamic_update_slice(array, jnp.expand_dims(entry, tuple(range(len(index)))), start)
    return jax.lax.with_sharding_constraint(after, place)
