"""The table of public output layers: what must hold of any of them, and that a Head can be made from each."""

import jax
import numpy as np
import pytest

from jaxdistill.losses.linear_heads import shapes


@pytest.mark.parametrize("shape", shapes.PUBLIC, ids=lambda shape: shape.source)
def test_a_head_of_every_shape_can_be_made(shape):
    head = shape.abstract(2, 3, "bfloat16")
    assert head.h_BLD.shape == (2, 3, shape.width) and head.w_VD.shape == (shape.rows, shape.width)
    assert head.h_BLD.dtype == head.w_VD.dtype == "bfloat16"
    assert (head.bias_V is not None) == shape.bias
    assert jax.eval_shape(lambda head: head.logits(), head).shape == (2, 3, shape.rows)


@pytest.mark.parametrize("shape", shapes.PUBLIC, ids=lambda shape: shape.source)
def test_the_vocabulary_fits_its_rows_and_padding_is_small(shape):
    assert 0.98 * shape.rows <= shape.vocab_size <= shape.rows
    assert shape.width % 64 == 0


def test_every_model_is_there_once():
    sources = [shape.source for shape in shapes.PUBLIC]
    assert len(set(sources)) == len(sources)
    everything = [x for x in vars(shapes).values() if isinstance(x, shapes.Shape)]
    assert set(shapes.PUBLIC) == set(everything)


@pytest.mark.parametrize(
    "shape", [shapes.GPT2, shapes.Shape("scaled", 512, 4096, 4000, scale=0.0625), shapes.QWEN3_0_6B], ids=str
)
def test_random_logits_have_unit_variance(shape):
    z = np.asarray(shape.random(0, 1, 2).logits())[..., : shape.vocab_size]
    # |h|^2 / D is off by sqrt(2 / D) from 1, and so is the variance of a token's logits
    np.testing.assert_allclose(z.var(axis=-1), 1, atol=4 * np.sqrt(2 / shape.width))
    assert np.all(np.asarray(shape.random(0, 1, 2).logits())[..., shape.vocab_size :] < -1e29)


def test_a_bias_and_a_softcap_reach_the_head():
    assert shapes.PHI_2.abstract(1, 1).bias_V.shape == (51_200,)
    assert shapes.GEMMA_2_2B.abstract(1, 1).softcap == 30.0
    assert shapes.COMMAND_R.abstract(1, 1).scale == 0.0625
