"""Tiny decoders with a vocabulary of 37 ids, and tokenizers that take the longest token that fits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models.families import gemma, gpt, llama
from jaxdistill.models.transformer import Config, Transformer

SIZES = {"vocab_size": 37, "num_layers": 2, "width": 16, "num_heads": 4, "head_size": 4, "mlp_width": 20}
CONFIGS = {
    "tied": Config(**SIZES),
    "untied": Config(**SIZES, tied=False),
    "gemma2": gemma.gemma2(2, 16, 4, 2, 20, head_size=6, query_scalar=5.0, vocab_size=37, window=3),
    "llama": llama.llama(37, 2, 16, 4, 2, 20),
    "opt": gpt.opt(2, 16, 4, 37),
}
LETTERS = [bytes([97 + n]) for n in range(26)]
OLD = (b"", *LETTERS, b"ab", b"abc", b"th", b"the", b" ", b" the", b"in", b"ing", b"", b"\xc3")  # 37; 0 and 35 special
NEW = (*(bytes([n]) for n in range(256)), b"", b"the", b"thing", b" thing", b"")  # 261; 256 and 260 special


@pytest.fixture(params=CONFIGS)
def config(request):
    """The configuration of every tiny decoder in turn."""
    return CONFIGS[request.param]


@pytest.fixture
def configs():
    """All of them by name."""
    return CONFIGS


@pytest.fixture
def old_table():
    return OLD


@pytest.fixture
def new_table():
    return NEW


@pytest.fixture
def encode():
    """The old tokenizer: the longest token first; nothing for bytes that it does not have."""
    ids = {spelt: token for token, spelt in enumerate(OLD) if spelt}

    def cut(text):
        found = []
        while text:
            sizes = [n for n in range(len(text), 0, -1) if text[:n] in ids]
            if not sizes:
                return []
            found.append(ids[text[: sizes[0]]])
            text = text[sizes[0] :]
        return found

    return cut


@pytest.fixture
def logits_of():
    """(config, params, tokens_BL) -> fp32 [B, L, V] of the real vocabulary."""

    def logits(config, params, tokens_BL):
        model = Transformer(config)

        def run(p):
            return model.head(p, model.hidden(p, jnp.asarray(tokens_BL, jnp.int32))[0]).logits()

        return np.asarray(jax.jit(run)(params))[..., : config.vocab_size]

    return logits


@pytest.fixture
def plain():
    """fp32 rows [37, 16] whose means and spreads differ from dimension to dimension."""
    rng = np.random.default_rng(3)
    return (rng.normal(size=(37, 16)) * rng.uniform(0.1, 3, 16) + rng.normal(size=16)).astype(np.float32)


@pytest.fixture
def without_padding():
    """(config) -> the configuration with as many rows as ids."""
    return lambda config: dataclasses.replace(config, vocab_multiple=1)
