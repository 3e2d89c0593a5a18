"""The teacher's ops on one device and on eight, over sequences, vocabulary and width, are one function."""

import os
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest

from jaxdistill.losses.linear_heads.sharding import LOCAL

SCRIPT = pathlib.Path(__file__).parent / "teacher_on_devices.py"
LAYOUTS = ("tokens", "vocabulary", "both", "and width")


@pytest.fixture(scope="module")
def one_device():
    return runpy.run_path(str(SCRIPT))["results"](LOCAL)


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, SCRIPT, directory], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {layout: dict(np.load(directory / f"{layout}.npz")) for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_give_the_ids_and_counts_of_one(one_device, eight_devices, layout):
    names = [name for name in one_device if name.endswith(("id_BLS", "count_BLS"))]
    assert len(names) == 6
    for name in names:
        np.testing.assert_array_equal(eight_devices[layout][name], one_device[name], err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_give_the_numbers_of_one_to_rounding(one_device, eight_devices, layout):
    # A log-normaliser is off by at most the error of a sum of V terms in its mass, and of a few functions: see Higham,
    # *Accuracy and Stability of Numerical Algorithms*, section 3.1. Here |lse| < 16, and |logp| < 32.
    u, V = 2.0**-24, 1500
    bound = 2 * (2 * np.sqrt(V) * u + (8 + 32) * u)
    for name in [name for name in one_device if name.endswith(("lse_BL", "logp_BLS"))]:
        assert np.abs(one_device[name]).max() < 32
        np.testing.assert_allclose(eight_devices[layout][name], one_device[name], rtol=0, atol=bound, err_msg=name)
    for name in [name for name in one_device if name.endswith("weight_BLS")]:
        np.testing.assert_allclose(eight_devices[layout][name], one_device[name], rtol=2 * bound, atol=0, err_msg=name)
