"""Tiny decoders of six layers: our own, and families that differ in what surgery must carry along."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models.design import AttentionDesign, Experts, Rotary, Window
from jaxdistill.models.families import gemma, gpt, llama
from jaxdistill.models.transformer import Config, Transformer

SIZES = {"vocab_size": 37, "num_layers": 6, "width": 16, "num_heads": 4, "head_size": 4, "mlp_width": 20}
GEMMA3 = gemma.gemma3(6, 16, 4, 1, 20, head_size=6, query_scalar=5.0, vocab_size=37, window=3)
LOCAL = dataclasses.replace(
    GEMMA3.design,
    position=Rotary(local_base=50.0),
    attention=dataclasses.replace(GEMMA3.design.attention, window=Window(3, (0, 1, 3, 4))),
)

CONFIGS = {
    "ours": Config(**SIZES, num_kv_heads=2),
    "ours untied": Config(**SIZES, tied=False),
    "gemma2": gemma.gemma2(6, 16, 4, 2, 20, head_size=6, query_scalar=5.0, vocab_size=37, window=3),
    "gemma3": dataclasses.replace(GEMMA3, design=LOCAL),
    "mistral": llama.llama(37, 6, 16, 4, 1, 20, head_size=6, attention=AttentionDesign(window=Window(3))),
    "opt": gpt.opt(6, 16, 4, 37),
    "pythia": gpt.pythia(6, 32, 2, 37),
    "mixtral": llama.llama(37, 6, 16, 4, 2, 20, mlp=Experts(5, 2)),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    """The configuration of every tiny decoder in turn."""
    return CONFIGS[request.param]


@pytest.fixture
def configs():
    """All of them by name."""
    return CONFIGS


@pytest.fixture
def tokens_BL():
    return jnp.asarray(np.random.default_rng(0).integers(37, size=(2, 9)), jnp.int32)


@pytest.fixture
def logits_of(tokens_BL):
    """(config, params) -> fp32 [B, L, V] for the tokens of the fixture."""

    def logits(config, params):
        model = Transformer(config)
        return np.asarray(jax.jit(lambda p: model.head(p, model.hidden(p, tokens_BL)[0]).logits())(params))

    return logits


@pytest.fixture
def assert_same():
    """Two trees have the same structure, dtypes and bits."""

    def compare(got, expected):
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)

    return compare


@pytest.fixture
def draw_host(draw_params):
    """(config, seed=0) -> random parameters as NumPy arrays, for what needs no device."""
    return lambda config, seed=0: jax.tree.map(np.asarray, draw_params(config, seed))
