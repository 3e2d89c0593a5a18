"""Which setting helps where a step does not fit, and by how much: sizes that follow from shapes."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxdistill.experiment import Experiment
from jaxdistill.models.transformer import Config
from jaxdistill.parallel import rules
from jaxdistill.parallel.chips import GIB
from jaxdistill.teacher import Online


def of(experiment: Experiment, mesh: jax.sharding.Mesh, arguments: Mapping[str, int]) -> list[str]:
    """Sentences, what saves most first.

    Args:
      arguments: bytes on each device by group, as `Inputs.bytes` has them.
    """
    found: list[tuple[float, str]] = []
    state = arguments["params"] + arguments["opt"]
    if (data := mesh.shape["data"]) > 1:
        saved = state * (1 - 1 / data)
        found.append((saved, f"mesh.data=1 mesh.fsdp=-1: the state is shared out further and takes {gib(saved)} less"))
    if experiment.dtype == "float32":
        saved = arguments["teachers"] / 2 + _kept(experiment, mesh) / 2
        found.append((saved, f"dtype=bfloat16: teacher and activations take half, about {gib(saved)} less"))
    if isinstance(experiment.teacher, Online):
        saved = arguments["teachers"]
        found.append((saved, f"teacher=Cached(...), or one on devices of its own: its weights take {gib(saved)} here"))
    found += _activations(experiment, mesh)
    return [sentence for saved, sentence in sorted(found, key=lambda one: -one[0]) if saved >= 2**20]


def _activations(experiment: Experiment, mesh: jax.sharding.Mesh) -> list[tuple[float, str]]:
    kept, rows = _kept(experiment, mesh), experiment.batch // _parts(experiment, mesh, "B")
    found: list[tuple[float, str]] = []
    if not experiment.remat:
        saved = kept - _kept(experiment, mesh, remat=True)
        found.append((saved, f"remat=true: a layer keeps its input alone, {gib(saved)} less for a third more work"))
    if (together := rows // experiment.accumulate) > 1:
        saved = kept * (1 - 1 / together)
        found.append((saved, f"accumulate={rows}: one sequence a device at a time, not {together}, {gib(saved)} less"))
        return found
    tensor, context = 2 * mesh.shape["tensor"], 2 * mesh.shape["context"]
    head = 2 * experiment.model.padded_vocab_size * experiment.model.width * 4 / tensor
    saved = (kept + head) / 2
    found.append((saved, f"mesh.tensor={tensor}: halves heads, mlp and vocabulary, {gib(saved)} less"))
    found.append((kept / 2, f"mesh.context={context}: halves every sequence, {gib(kept / 2)} less"))
    return found


def _parts(experiment: Experiment, mesh: jax.sharding.Mesh, own: str) -> int:
    return math.prod(rules.parts(own, mesh, rules.named(experiment.table)))


def _kept(experiment: Experiment, mesh: jax.sharding.Mesh, remat: bool | None = None) -> float:
    """Bytes of activations that the student keeps for its backward pass, of one micro-batch on a device."""
    tokens = experiment.batch // experiment.accumulate * experiment.data.length / _parts(experiment, mesh, "BL")
    item = jnp.dtype(experiment.dtype).itemsize
    width = experiment.model.width
    remat = experiment.remat if remat is None else remat
    per_token = width if remat else 4 * width + _inside(experiment.model) / mesh.shape["tensor"]
    return tokens * item * experiment.model.num_layers * per_token


def _inside(config: Config) -> int:
    """Numbers a token that a layer makes between its matmuls: queries, keys, values, mixed values, and the MLP's."""
    return (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_size + 3 * config.mlp_width


def gib(size: float) -> str:
    """Bytes as text: "3.25 GiB"."""
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"
