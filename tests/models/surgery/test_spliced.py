"""One program for every patched model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.models.design import AttentionDesign, Design, LayerNorm, LearnedPositions, PlainMLP, Window
from jaxdistill.models.surgery import layers, patterns
from jaxdistill.models.surgery.patch import patch
from jaxdistill.models.surgery.spliced import Spliced, plan, plan_of_teacher
from jaxdistill.models.surgery.truncate import truncate
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.models.variant import Variant

SIZES = {"vocab_size": 61, "num_layers": 6, "width": 16, "num_heads": 2, "head_size": 8, "mlp_width": 24}
WINDOWS = Design(attention=AttentionDesign(window=Window(3, (0, 2, 3, 5))))
LEARNED = Design(LayerNorm(), LearnedPositions(16), AttentionDesign(qkv_bias=True), PlainMLP("relu", bias=True))
CONFIGS = {
    "tied": Config(**SIZES),
    "untied": Config(**SIZES, tied=False),
    "windows": Variant(**SIZES, design=WINDOWS),
    "learned positions": Variant(**SIZES, qk_norm=False, design=LEARNED),
}
KEEP = patterns.every_nth(6, 2, 1, 2)


def two(config):
    """A teacher, and a student of its shape that has moved away from it."""
    teacher = Transformer(config).init(jax.random.key(0))
    cut, student = truncate(config, teacher, KEEP)
    noise = Transformer(cut).init(jax.random.key(1))
    return teacher, cut, jax.tree.map(lambda a, b: a + 0.3 * b, student, noise)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_the_patched_model_does_for_every_subset_with_one_program(name):
    config = CONFIGS[name]
    teacher, cut, student = two(config)
    tokens_BL = jax.random.randint(jax.random.key(2), (2, 9), 0, config.vocab_size)
    segment_BL = jnp.where(jnp.arange(9) < 4, 0, 1) * jnp.ones((2, 1), jnp.int32)
    spliced = Spliced(config)
    traces = []

    @jax.jit
    def logits(plan):
        traces.append(1)
        params = {"student": student, "teacher": teacher, "plan": plan}
        return spliced.head(params, spliced.hidden(params, tokens_BL, segment_BL)[0]).logits()

    for subset in ((), (0,), (1, 3), (3,), (0, 1, 2, 3), layers.last_blocks(KEEP, 6, 1)):
        patched, params = patch(cut, student, config, teacher, KEEP, subset)
        model = Transformer(patched)
        expected = model.head(params, model.hidden(params, tokens_BL, segment_BL)[0]).logits()
        np.testing.assert_allclose(logits(plan(KEEP, 6, subset)), expected, rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


def test_layers_of_the_teacher_alone_are_naive_pruning():
    config = CONFIGS["windows"]
    teacher, _, student = two(config)
    tokens_BL = jax.random.randint(jax.random.key(2), (2, 9), 0, config.vocab_size)
    cut, pruned = truncate(config, teacher, (0, 3, 4))
    params = {"student": student, "teacher": teacher, "plan": plan_of_teacher((0, 3, 4), 6)}
    found = Spliced(config).hidden(params, tokens_BL)[0]
    np.testing.assert_allclose(found, Transformer(cut).hidden(pruned, tokens_BL)[0], rtol=1e-5, atol=1e-5)


def test_neither_model_is_copied():
    config = dataclasses.replace(CONFIGS["untied"], width=64, mlp_width=256, num_layers=40, vocab_size=64)
    keep = patterns.every_nth(40)
    teacher = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    _, student = truncate(config, teacher, keep)
    tokens_BL = jax.ShapeDtypeStruct((1, 8), jnp.int32)

    def hidden(student, teacher, plan, tokens_BL):
        return Spliced(config).hidden({"student": student, "teacher": teacher, "plan": plan}, tokens_BL)[0]

    compiled = jax.jit(hidden).lower(student, teacher, plan(keep, 40, (3,)), tokens_BL).compile()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(teacher["layers"]))
    assert compiled.memory_analysis().temp_size_in_bytes < size / 8


def test_states_inside_are_refused():
    with pytest.raises(InputError, match="not kept"):
        Spliced(CONFIGS["tied"]).hidden({}, jnp.zeros((1, 3), jnp.int32), keep=(0,))
