"""The search against minima that are known in closed form."""

import numpy as np
import pytest

from jaxdistill.scaling import search


def found(loss, box, spacing=0.25):
    return search.descend(loss, search.grid(loss, box, spacing), box, spacing)


def test_the_deeper_of_two_basins_is_found_for_each_problem():
    """(x^2 - 1)^2 + tilt x has its deeper minimum at the root of 4 x^3 - 4 x + tilt on the side away from the tilt."""
    tilt_K1 = np.array([[0.3], [-0.3], [0.1]])
    x_KX = found(lambda x: (x[..., 0] ** 2 - 1) ** 2 + tilt_K1 * x[..., 0], [(-2.0, 2.0)])
    for (tilt,), (x,) in zip(tilt_K1, x_KX, strict=True):
        roots = np.roots([4, 0, -4, tilt]).real
        assert x == pytest.approx(roots.min() if tilt > 0 else roots.max(), abs=1e-5)


def test_a_correlated_bowl_is_descended_to_its_bottom():
    def bowl(x):
        u, v = x[..., 0] - 0.3, x[..., 1] + 0.7
        return 1 + u**2 + v**2 + 1.8 * u * v

    np.testing.assert_allclose(found(bowl, [(-3.0, 3.0), (-3.0, 3.0)]), [[0.3, -0.7]], atol=2e-6)


def test_a_slope_ends_on_the_edge_of_the_box_and_a_held_coordinate_stays():
    (x,) = found(lambda x: 5 - x[..., 0] + (x[..., 1] - 9) ** 2, [(0.0, 2.0), (4.0, 4.0)])
    np.testing.assert_array_equal(x, [2.0, 4.0])


def test_points_that_are_not_allowed_are_never_chosen():
    (x,) = found(lambda x: np.where(x[..., 0] >= 0.5, x[..., 0], np.inf), [(0.0, 3.0)])
    assert x[0] == pytest.approx(0.5, abs=1e-5) and x[0] >= 0.5
