"""From a configuration and parameters to a directory that `transformers` loads."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.huggingface.attributes import HARMLESS, Attributes
from jaxdistill.models.huggingface.families import FAMILIES
from jaxdistill.models.huggingface.family import Family
from jaxdistill.models.huggingface.files import ShardWriter
from jaxdistill.models.huggingface.reading import theirs
from jaxdistill.models.huggingface.tables import by_tensor, fuse
from jaxdistill.models.transformer import Config, Params
from jaxdistill.models.variant import Variant

SHARD_BYTES = 10**9  # a shard is in memory until it is written


def with_plain_logits(config: Config, params: Params) -> tuple[Variant, Params]:
    """The same model with its factor on the logits moved into the last norm, where every family can hold it.

    Exact but for rounding, for tied and untied embeddings alike.
    """
    design, given = config.design, config.design.logit_scale
    scale = given if given is not None else config.base_width**0.5 / config.width
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values |= {"design": dataclasses.replace(design, logit_scale=1.0), "base_width": config.width}
    if scale == 1:
        return Variant(**values), params
    offset = 1.0 if getattr(design.norm, "unit_offset", False) else 0.0
    folded = {"norm_D": (params["norm_D"][...] + offset) * scale - offset}
    if "norm_bias_D" in params:
        folded["norm_bias_D"] = params["norm_bias_D"][...] * scale
    return Variant(**values), params | folded


def find_family(config: Variant, prefer: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The family that says all of a configuration, and its attributes: written, read again and found to be the same.

    `prefer` is tried first. InputError, naming what differs from the nearest family, where there is none.
    """
    nearest: list[str] = []
    for family in sorted(FAMILIES, key=lambda family: family.model_type != prefer):
        attributes = family.write(config)
        back = _read_again(family, attributes)
        if back is None:
            continue
        same = dataclasses.replace(back, vocab_multiple=config.vocab_multiple, base_width=config.base_width)
        if not (differ := _unlike(config, same)):
            return family, attributes
        if not nearest or len(differ) < len(nearest):
            nearest = [f"{family.architecture} has another {name}" for name in differ]
    raise InputError(f"no architecture of transformers computes this model: {'; '.join(nearest)}")


def _read_again(family: Family, attributes: Mapping[str, Any]) -> Variant | None:
    """The configuration that attributes say once they have been through JSON; None where they cannot be read."""
    reader = Attributes(json.loads(json.dumps(attributes)), family.architecture)
    try:
        config = family.read(reader)
        reader.finish(HARMLESS | {"max_position_embeddings"})
    except InputError:
        return None
    return config


def _unlike(a: Any, b: Any, prefix: str = "") -> list[str]:
    """The fields in which two nests of dataclasses differ."""
    if type(a) is not type(b) or not dataclasses.is_dataclass(a):
        return [] if a == b else [prefix.removesuffix(".")]
    pairs = ((f.name, getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return [path for name, x, y in pairs for path in _unlike(x, y, f"{prefix}{name}.")]


def write_checkpoint(
    directory: Path,
    config: Config,
    params: Params,
    *,
    positions: int | None,
    prefer: str | None = None,
    more: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Family:
    """Write safetensors and config.json into an empty directory, in the dtype of the parameters, and give the family.

    Args:
      directory: exists already.
      config, params: the model; padded rows of its vocabulary are left out. Of an array only its `dtype` and its
        parts are asked for, a layer at a time, so that stacked arrays need not be one.
      positions: the longest context it is made for; None where nobody said.
      prefer: the family to try first, where several compute the same.
      more: further attributes, such as `eos_token_id`.
      shard_bytes: most bytes of a file.

    Raises InputError where no family computes the model.
    """
    config, params = with_plain_logits(config, params)
    family, attributes = find_family(config, prefer)
    arrays = {path: array for path, _, array in dims.leaves(params)}
    sizes, writer = theirs(config), ShardWriter(directory, shard_bytes)
    for name, entries in by_tensor(family.rows(config), sizes).items():
        parts = [np.asarray(jax.device_get(arrays[row.ours][index])) for row, index in entries]
        if entries[0][0].own.startswith("V"):
            parts = [part[: config.vocab_size] for part in parts]
        writer.add(name, fuse([row for row, _ in entries], parts, sizes))
    writer.finish()
    dtype = jnp.result_type(*(array.dtype for array in arrays.values())).name
    said = {} if positions is None or family.model_type == "gpt2" else {"max_position_embeddings": positions}
    whole: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "torch_dtype": dtype,
    }
    whole |= said | attributes | dict(more or {})
    (directory / "config.json").write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")
    return family
