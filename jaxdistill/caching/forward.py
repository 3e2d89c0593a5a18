"""The teacher's forward pass over windows, up to the columns of a cache."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill import data, frozen
from jaxdistill.across import Chunking, Marks, says
from jaxdistill.cache import codec
from jaxdistill.cache.chunks import TOP_LEVEL, ChunkLevels
from jaxdistill.cache.columns import to_columns
from jaxdistill.cache.encode import encode
from jaxdistill.cache.reader import columns_of, content_keys
from jaxdistill.cache.recipe import Recipe
from jaxdistill.data import Dataset
from jaxdistill.errors import InputError
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.parallel import rules
from jaxdistill.program import head_sharding, precision
from jaxdistill.teacher import Across

BATCH_TOKENS = 8192  # tokens in one forward pass of the teacher, where nothing else is said
SPLITS = ("train", "validation")


def prepare(
    recipe: Recipe, teacher: Path, cache: Path | None, quiet: bool
) -> tuple[Dataset, tuple[Marks, Marks] | None]:
    """The data of a recipe; where a Chunking is kept, with the teacher's tokens beside, and the marks of both's ids."""
    dataset = data.prepare(recipe.data, cache, quiet)
    if not isinstance(recipe.keep, Chunking):
        return dataset, None
    return frozen.beside(teacher, Across(recipe.teacher, recipe.keep), recipe.data, dataset, cache, quiet)


class Teacher:
    """The compiled forward pass of a recipe's teacher, from windows to the columns of a cache.

    Args:
      recipe, dataset, layout: what is made of which data.
      directory: of the teacher's run.
      batch: windows in a forward pass; None takes those of `BATCH_TOKENS`.
      devices: default all of the job.
      marks: what `prepare` gave with the dataset.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        layout: codec.Layout,
        directory: Path,
        batch: int | None = None,
        devices: Sequence[jax.Device] | None = None,
        marks: tuple[Marks, Marks] | None = None,
    ):
        self.mesh = recipe.mesh.build(devices)
        self._table = rules.named(recipe.table)
        (rows_at_once,) = rules.parts("B", self.mesh, self._table)
        at_least = batch or max(1, BATCH_TOKENS // recipe.data.length)
        self.batch = -(-at_least // rows_at_once) * rows_at_once
        self._dataset, self._recipe, self._layout = dataset, recipe, layout
        tokenizer = dataset.tokenizer if marks is None else None
        model, self.params = frozen.load(directory, recipe.dtype, tokenizer, self.mesh, self._table)
        model = dataclasses.replace(model, shard=rules.constrain(self.mesh, self._table))
        sharding = head_sharding(self.mesh, self._table)
        if marks is None:
            forward = _of_tokens(model, recipe.keep, layout, sharding)
        else:
            forward = _of_chunks(model, recipe.keep, layout, marks, sharding)
        self._forward = precision(recipe.dtype)(jax.jit(forward))

    def start(self, split: str, windows: np.ndarray) -> "Spoken":
        """Set the devices to work on these windows, at most `batch` of them; does not wait."""
        padded = np.pad(windows, (0, self.batch - len(windows)), constant_values=-1)
        source = self._dataset.train if split == "train" else self._dataset.held_out
        batch = source.batch(padded)
        # Tokens 2^32 apart share their random numbers: no sum is ever taken over so many at once.
        length = self._recipe.data.length
        index_BL = ((padded[:, None] * length + np.arange(length)) % 2**32).astype(np.uint32)
        key = jax.random.fold_in(jax.random.key(self._recipe.seed, impl="threefry2x32"), SPLITS.index(split))
        placed, index_BL = self._place(batch), self._place(index_BL)
        return Spoken(
            self._layout, content_keys(batch)[: len(windows)], self._forward(self.params, placed, key, index_BL)
        )

    def _place(self, tree: Any) -> Any:
        return tree if self.mesh.size == 1 else jax.device_put(tree, rules.of_batch(tree, self.mesh, self._table))


def _of_tokens(model: Any, keep: Any, layout: codec.Layout, sharding: Sharding) -> Callable:
    """forward(params, batch, key, index_BL) -> what `encode` gives of the teacher's distributions."""

    def forward(params: Any, batch: Any, key: jax.Array, index_BL: Any) -> dict[str, jax.Array]:
        h_BLD, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
        return encode(model.head(params, h_BLD), batch.label_BL, key, index_BL, keep, layout, sharding)

    return forward


def _of_chunks(model: Any, chunking: Any, layout: Any, marks: tuple[Marks, Marks], sharding: Sharding) -> Callable:
    """The same of a teacher with another tokenizer, which reads the tokens beside the batch; nothing is random."""

    def forward(params: Any, batch: Any, key: jax.Array, index_BL: Any) -> dict[str, jax.Array]:
        own = batch.beside.batch
        h_BLD, _ = model.hidden(params, own.tokens_BL, own.segment_BL, own.position_BL)
        return layout.pack(says(model.head(params, h_BLD), batch, chunking, *marks, sharding))

    return forward


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What the teacher said of a batch, perhaps not yet."""

    layout: codec.Layout
    key: np.ndarray
    packed: dict[str, jax.Array]

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of its rows, on the host; waits for the devices."""
        packed = {name: np.asarray(x)[: len(self.key)] for name, x in self.packed.items()}
        self._check(packed)
        return to_columns(packed, columns_of(self.layout)) | {"key": self.key}

    def _check(self, packed: dict[str, np.ndarray]) -> None:
        """InputError where something has no place in the layout."""
        if isinstance(self.layout, ChunkLevels):
            if packed["level_BL"].max(initial=0) > TOP_LEVEL:
                raise InputError(
                    f"a chunk's log-probability is not finite or below {-self.layout.resolution * TOP_LEVEL:.0f} nats: "
                    "give teacher.resolution a larger value, or teacher.keep a smaller gamma, which joins fewer chunks"
                )
            return
        is_empty = "number_BL" in packed and packed["number_BL"].min(initial=1) == 0
        if is_empty or not np.isfinite(packed["teacher_lse_BL"]).all():
            raise InputError(
                "nothing can be kept of some token: its logits are not finite, or one of its draws weighs more than "
                "exp(16), as with an exponent far from 1"
            )
