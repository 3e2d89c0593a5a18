"""Tiny checkpoints of every family, written with safetensors alone."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdistill.models.huggingface.families import FAMILIES
from jaxdistill.models.huggingface.tables import by_tensor
from jaxdistill.models.huggingface.writing import find_family

DTYPES = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}


@pytest.fixture
def craft(tmp_path):
    """craft(config, dtype) -> a directory with random tensors and the config.json of a configuration."""

    def make(config, dtype="float32", name="source", **attributes):
        directory, rng = tmp_path / name, np.random.default_rng(0)
        directory.mkdir()
        found, written = find_family(config)
        sizes = {**config.dims, "V": config.vocab_size}
        tensors = {
            name: rng.normal(size=entries[0][0].shape(sizes)).astype(DTYPES[dtype])
            for name, entries in by_tensor(found.rows(config), sizes).items()
        }
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        content = {"model_type": found.model_type, "max_position_embeddings": 64, **written, **attributes}
        (directory / "config.json").write_text(json.dumps(content))
        return directory

    return make


@pytest.fixture(params=FAMILIES, ids=lambda family: family.model_type)
def kind(request):
    """Every family of checkpoints."""
    return request.param
