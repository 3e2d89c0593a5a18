"""Sorted probabilities: names of tokens do not matter, and neither do sizes of vocabularies."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.losses.sorted_l1 import SortedL1
from jaxdistill.losses.targets import Labels

U = 2.0**-24


def test_it_is_the_l1_distance_of_sorted_probabilities_and_at_most_that_of_the_unsorted(draw, teach):
    z_BLV, z_teacher_BLV = draw(0, 2.0), draw(1, 2.0)
    q, p = (special.softmax(np.float64(z), axis=-1) for z in (z_BLV, z_teacher_BLV))
    got_BL = SortedL1()(z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(got_BL, np.abs(np.sort(q) - np.sort(p)).sum(-1), rtol=0, atol=33 * U)
    assert np.all(got_BL <= np.abs(q - p).sum(-1) + 33 * U)


def test_no_permutation_of_either_vocabulary_changes_it_and_a_permuted_copy_costs_nothing(draw, teach):
    z_BLV, z_teacher_BLV = draw(0, 2.0), draw(1, 2.0)
    order = np.random.default_rng(2).permutation(33)
    plain_BL = SortedL1()(z_BLV, teach(z_teacher_BLV))
    np.testing.assert_allclose(SortedL1()(z_BLV[..., order], teach(z_teacher_BLV)), plain_BL, rtol=0, atol=33 * U)
    np.testing.assert_allclose(SortedL1()(z_BLV, teach(z_teacher_BLV[..., order])), plain_BL, rtol=0, atol=33 * U)
    np.testing.assert_allclose(SortedL1()(z_BLV, teach(z_BLV[..., order])), 0, atol=33 * U)


@pytest.mark.parametrize("sizes", [(33, 20), (20, 33)])
def test_the_smaller_vocabulary_is_filled_up_with_zeros(draw, teach, sizes):
    z_BLV, z_teacher_BLV = draw(0, 2.0, sizes[0]), draw(1, 2.0, sizes[1])
    q, p = (special.softmax(np.float64(z), axis=-1) for z in (z_BLV, z_teacher_BLV))
    q, p = (-np.sort(-np.pad(x, ((0, 0), (0, 0), (0, 33 - x.shape[-1])))) for x in (q, p))
    got_BL = SortedL1()(z_BLV, teach(z_teacher_BLV, padding=3))
    np.testing.assert_allclose(got_BL, np.abs(q - p).sum(-1), rtol=0, atol=33 * U)


def test_its_gradient_moves_each_rank_towards_the_teachers(draw, teach, gradient):
    z_BLV, z_teacher_BLV = draw(0, 2.0), draw(1, 2.0)
    q, p = (special.softmax(np.float64(z), axis=-1) for z in (z_BLV, z_teacher_BLV))
    rank = np.argsort(np.argsort(-q, axis=-1), axis=-1)
    sign = np.take_along_axis(np.sign(-np.sort(-q) + np.sort(-p)), rank, -1)
    expected_BLV = q * (sign - (q * sign).sum(-1, keepdims=True))
    np.testing.assert_allclose(gradient(SortedL1(), z_BLV, teach(z_teacher_BLV)), expected_BLV, rtol=0, atol=8 * U)


def test_it_needs_a_whole_distribution(draw):
    with pytest.raises(InputError, match="whole distribution, not Labels"):
        SortedL1()(draw(0), Labels(jnp.zeros((2, 3), jnp.int32)))
