"""Sums and counts: a mean that does not depend on how the tokens were divided."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.losses import reduce


def test_parts_of_any_size_add_up_to_the_mean_of_the_whole():
    rng = np.random.default_rng(0)
    value_BL = rng.integers(-8, 9, size=(6, 5)).astype(np.float32)  # whole numbers add exactly in fp32
    weight_BL = rng.choice([0.0, 0.5, 1.0, 2.0], size=(6, 5)).astype(np.float32)
    parts = [reduce.sums({"ce": value_BL[rows]}, weight_BL[rows]) for rows in (slice(0, 1), slice(1, 6), slice(6, 6))]
    totals = reduce.add(reduce.add(parts[0], parts[1]), parts[2])
    assert totals == reduce.sums({"ce": value_BL}, weight_BL)
    means = reduce.means(totals)
    np.testing.assert_allclose(means["ce"], np.average(value_BL, weights=weight_BL), rtol=1e-6)
    assert means["tokens"] == weight_BL.sum()


def test_the_mean_of_a_batch_in_which_nothing_counts_is_zero():
    zero_BL = jnp.zeros((2, 3))
    assert reduce.means(reduce.sums({"ce": zero_BL + 5}, zero_BL)) == {"ce": 0, "tokens": 0}


@pytest.mark.parametrize("weight", [1e-3, 0.25, 4.0])
def test_one_factor_on_all_weights_does_not_change_a_mean(weight):
    value_BL = jnp.asarray([[1.0, 3.0], [5.0, 7.0]])
    means = reduce.means(reduce.sums({"ce": value_BL}, jnp.full((2, 2), weight)))
    np.testing.assert_allclose(means["ce"], 4.0, rtol=1e-6)
