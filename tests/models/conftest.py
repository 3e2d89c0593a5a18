"""One tiny decoder of each family, with everything in it that sets the family apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import dims
from jaxdistill.models.design import AttentionDesign, Experts, LinearScaling, Llama3Scaling, Rotary, Window
from jaxdistill.models.families import gemma, gpt, llama
from jaxdistill.models.transformer import Transformer

SCALING = Llama3Scaling(8.0, 1.0, 4.0, 16)


def _linear(config):
    design = dataclasses.replace(config.design, position=Rotary(scaling=LinearScaling(4.0), local_base=10_000.0))
    return dataclasses.replace(config, design=design)


FAMILIES = {
    "llama": llama.llama(37, 3, 16, 4, 2, 20, rope_base=100.0, scaling=SCALING),
    "mistral": llama.llama(37, 3, 16, 4, 1, 20, head_size=6, attention=AttentionDesign(window=Window(3))),
    "qwen2": llama.llama(37, 3, 16, 4, 2, 20, tied=True,
                         attention=AttentionDesign(qkv_bias=True, window=Window(3, (1, 2)))),
    "qwen3": llama.llama(37, 3, 16, 4, 2, 20, head_size=6, tied=True, qk_norm=True),
    "gemma2": gemma.gemma2(3, 16, 4, 2, 20, head_size=6, query_scalar=5.0, vocab_size=37, window=3),
    "gemma3": _linear(gemma.gemma3(7, 16, 4, 1, 20, head_size=6, query_scalar=5.0, vocab_size=37, window=3)),
    "pythia": gpt.pythia(3, 32, 2, 37),
    "gpt2": gpt.gpt2(3, 16, 4, 37),
    "opt": gpt.opt(3, 16, 4, 37),
    "mixtral": llama.llama(37, 3, 16, 4, 2, 20, mlp=Experts(5, 2)),
    "qwen3_moe": llama.llama(37, 3, 16, 4, 2, 20, head_size=6, qk_norm=True, mlp=Experts(6, 3, normalise=False)),
}  # fmt: skip


def random_params(config, seed=0):
    """Parameters in which no gain is one and no bias zero, so that none can be forgotten."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(Transformer(config).init, jax.random.key(0))

    def draw(own, x):
        is_vector, is_table = len(own.removeprefix("N")) == 1, set(own) & set("VP")
        spread = 0.2 if is_vector else 1.0 if is_table else 0.3
        return jnp.asarray(is_vector + spread * rng.normal(size=x.shape), jnp.float32)

    return jax.tree.map(draw, dims.tree_letters(shapes), shapes)


@pytest.fixture(params=FAMILIES)
def family(request):
    """The configuration of a tiny model of every family."""
    return FAMILIES[request.param]


@pytest.fixture
def draw_params():
    """`random_params`."""
    return random_params
