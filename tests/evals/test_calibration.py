"""Reliability diagrams and the expected calibration error, in closed form and against NumPy's histogram."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.evals.calibration import Reliability, bin_sums


def diagram(confidence, correct, weight=None, bins=15):
    arrays = [np.asarray(x, np.float32).reshape(1, -1) for x in (confidence, correct)]
    weight_BL = np.ones_like(arrays[0]) if weight is None else np.asarray(weight, np.float32).reshape(1, -1)
    return Reliability.of({k: np.float64(v) for k, v in bin_sums(*arrays, jnp.asarray(weight_BL), bins).items()})


@pytest.fixture(scope="module")
def tokens():
    draw = np.random.default_rng(0)
    confidence = draw.beta(2, 3, 4000).astype(np.float32)
    return confidence, (draw.random(4000) < confidence**1.5).astype(np.float32), draw.integers(2, size=4000)


def test_one_confidence_and_its_share_of_right_tokens():
    found = diagram([0.75] * 8, [1, 1, 1, 1, 1, 1, 0, 0])
    assert found.ece == 0  # 6 of 8 right, as sure as it was
    assert diagram([0.75] * 8, [1, 1] + [0] * 6).ece == 0.5
    assert diagram([1.0] * 4, [0] * 4).ece == 1


def test_errors_in_opposite_directions_do_not_cancel_between_bins():
    confidence, correct = [0.25] * 4 + [0.75] * 4, [1] * 4 + [0] * 4
    assert diagram(confidence, correct, bins=2).ece == 0.75
    assert diagram(confidence, correct, bins=1).ece == 0  # and do within one


def test_a_bin_holds_its_upper_edge_and_not_its_lower_one():
    found = diagram([0.0, 0.25, 0.26, 0.5, 1.0], [1, 1, 1, 1, 1], bins=4)
    assert found.count == (2, 2, 0, 1)


def test_an_empty_bin_has_no_accuracy_and_no_part_in_the_error():
    found = diagram([0.9, 0.95], [1, 0], bins=2)
    assert (found.count[0], found.confidence[0], found.accuracy[0]) == (0, None, None)
    assert found.accuracy[1] == 0.5
    assert found.ece == pytest.approx(0.425)  # sure of 0.925, right in 0.5
    assert found.filled == [(2, found.confidence[1], 0.5)]


@pytest.mark.parametrize("bins", [1, 10, 15, 21])
def test_the_diagram_is_numpys_histogram(tokens, bins):
    confidence, correct, weight = tokens
    kept = weight == 1
    edges = np.linspace(0, 1, bins + 1)
    count, total, right = (
        np.histogram(np.float64(confidence[kept]), edges, weights=w)[0]
        for w in (None, np.float64(confidence[kept]), correct[kept])
    )
    found = diagram(confidence, correct, weight, bins)
    np.testing.assert_array_equal(found.count, count)
    filled = count > 0
    mean, share = total[filled] / count[filled], right[filled] / count[filled]
    # fp32 sums of at most 4000 numbers from 0 to 1
    bound = 4000 * 2.0**-24
    np.testing.assert_allclose(np.array(found.filled), np.stack([count[filled], mean, share], axis=1), rtol=bound)
    assert found.ece == pytest.approx(np.abs(right - total).sum() / kept.sum(), abs=2 * bound)


def test_finer_bins_never_find_a_smaller_error(tokens):
    confidence, correct, weight = tokens
    errors = [diagram(confidence, correct, weight, bins).ece for bins in (1, 3, 15, 60)]
    assert all(fine >= coarse - 4000 * 2.0**-24 for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] > errors[0]


def test_tokens_of_weight_zero_are_in_no_bin(tokens):
    confidence, correct, weight = tokens
    kept = weight == 1
    assert diagram(confidence, correct, weight).count == diagram(confidence[kept], correct[kept]).count
