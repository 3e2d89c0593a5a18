"""Attention relations: the definition, what they do not feel, and what a position may see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.losses.attention_relations import RelationKL

U = 2.0**-24
ONE_BL = jnp.ones((2, 4), jnp.int32)


def heads(seed, H, K, shape=(2, 4)):
    return np.random.default_rng(seed).normal(size=(*shape, H, K)).astype(np.float32)


def relation(x, n, segment_BL):
    """[B, heads, L, M] in float64; rows see earlier positions of their segment."""
    B, L, _, _ = x.shape
    x = np.float64(x).reshape(B, L, n, -1)
    scores = np.einsum("blhk,bmhk->bhlm", x, x) / np.sqrt(x.shape[-1])
    segment_BL = np.asarray(segment_BL)
    sees = (segment_BL[:, :, None] == segment_BL[:, None]) & (np.arange(L)[:, None] >= np.arange(L))
    return special.log_softmax(np.where(sees[:, None], scores, -np.inf), axis=-1)


@pytest.mark.parametrize("segment_BL", [ONE_BL, jnp.asarray([[1, 1, 2, 2], [1, 2, 2, 3]])])
def test_it_is_the_mean_kl_of_the_relations_of_models_with_other_heads_and_widths(segment_BL):
    student, teacher = heads(0, 2, 4), heads(1, 3, 8)
    log_s, log_t = (relation(x, 4, segment_BL) for x in (student, teacher))
    difference = np.subtract(log_t, log_s, where=np.isfinite(log_t), out=np.zeros_like(log_t))
    expected_BL = (np.exp(log_t) * difference).sum(-1).mean(1)
    np.testing.assert_allclose(RelationKL(4)(student, teacher, segment_BL), expected_BL, rtol=1e-5, atol=32 * U)


def test_a_rotation_within_a_relation_head_costs_nothing():
    x = heads(0, 2, 8)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0].astype(np.float32)
    np.testing.assert_allclose(RelationKL(2)(x @ rotation, x, ONE_BL), 0, atol=256 * U)


def test_the_first_position_sees_itself_alone_and_later_ones_change_nothing_before_them():
    student, teacher = heads(0, 2, 4), heads(1, 2, 4)
    loss_BL = RelationKL(2)(student, teacher, ONE_BL)
    assert not np.any(loss_BL[:, 0])
    student[:, 3] += 1
    np.testing.assert_array_equal(RelationKL(2)(student, teacher, ONE_BL)[:, :3], loss_BL[:, :3])


def test_padding_may_hold_anything_on_either_side():
    student, teacher, segment_BL = heads(0, 2, 4), heads(1, 2, 4), jnp.asarray([[1, 1, 1, 0], [1, 1, 0, 0]])
    expected_BL = RelationKL(2)(student, teacher, segment_BL)
    student[segment_BL == 0], teacher[segment_BL == 0] = np.nan, np.inf

    def total(x):
        loss_BL = RelationKL(2)(x, teacher, segment_BL)
        return jnp.sum(jnp.where(segment_BL != 0, loss_BL, 0)), loss_BL

    (_, loss_BL), slope = jax.value_and_grad(total, has_aux=True)(jnp.asarray(student))
    np.testing.assert_array_equal(loss_BL[segment_BL != 0], expected_BL[segment_BL != 0])
    assert np.all(np.isfinite(slope)) and not np.any(slope[segment_BL == 0])


def test_relation_heads_that_share_out_no_width_are_refused():
    with pytest.raises(InputError, match="3 relation heads cannot share out 2 heads of size 4; choose a divisor of 8"):
        RelationKL(3)(heads(0, 2, 4), heads(1, 2, 4), ONE_BL)
