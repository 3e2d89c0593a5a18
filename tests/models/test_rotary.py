"""Rotary positions: scaled frequencies against their definition, and partial rotation."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import rotary
from jaxdistill.models.design import LinearScaling, Llama3Scaling


def frequencies(size, base, scaling):
    """The angles of position 1."""
    cos_BLK, sin_BLK = rotary.angles(jnp.ones((1, 1)), size, base, scaling)
    return np.arctan2(sin_BLK, cos_BLK)[0, 0]


def llama3(size, base, scaling):
    """Cases, as Llama's reference code has them, in float64."""
    found = []
    for i in range(size // 2):
        f = base ** (-2 * i / size)
        wavelength = 2 * np.pi / f
        if wavelength < scaling.context / scaling.high:
            found.append(f)
        elif wavelength > scaling.context / scaling.low:
            found.append(f / scaling.factor)
        else:
            ramp = (scaling.context / wavelength - scaling.low) / (scaling.high - scaling.low)
            found.append((1 - ramp) * f / scaling.factor + ramp * f)
    return np.array(found)


@pytest.mark.parametrize(
    ("size", "base", "scaling"),
    [(64, 500_000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)), (24, 100.0, Llama3Scaling(32.0, 1.0, 4.0, 64))],
    ids=str,
)
def test_the_frequencies_of_llama_3_keep_the_high_and_stretch_the_low(size, base, scaling):
    expected = llama3(size, base, scaling)
    plain = base ** (-2 * np.arange(size // 2) / size)
    assert np.any(expected == plain) and np.any(np.isclose(expected, plain / scaling.factor))  # both ends are there
    assert np.any((expected < plain) & (expected > plain / scaling.factor * 1.01))  # and the ramp
    # base^x is off by x log(base) u, the rest by a few u
    np.testing.assert_allclose(frequencies(size, base, scaling), expected, rtol=20 * 2.0**-24)


def test_linear_scaling_divides_positions():
    np.testing.assert_allclose(
        frequencies(8, 100.0, LinearScaling(4.0)), 100.0 ** (-2 * np.arange(4) / 8) / 4, rtol=10 * 2.0**-24
    )


def test_dimensions_beyond_the_turning_part_pass_as_they_are():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 2, 12)), jnp.float32)
    angles = rotary.angles(jnp.arange(5)[None], 4, 100.0)
    turned = rotary.rotate(x, angles)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(turned[..., :4], rotary.rotate(x[..., :4], angles))
    assert np.abs(turned[:, 1:, :, :4] - x[:, 1:, :, :4]).max() > 0.1
