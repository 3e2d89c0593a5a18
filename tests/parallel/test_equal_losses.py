"""What runs on one device runs on eight, with the same losses to rounding."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxdistill import caching
from jaxdistill.experiment import load_module
from jaxdistill.run import run
from jaxdistill.teacher import Cached, Draws

TRAIN = pathlib.Path(__file__).parent / "train.py"
FSDP, FSDP_TENSOR, ALL = {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}


def losses(tiny, kind, devices, mesh, accumulate=1, cache=""):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    arguments = [sys.executable, TRAIN, tiny, kind, json.dumps(mesh), str(accumulate), str(cache)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["devices"] == devices
    return np.array(result["losses"])


@pytest.fixture(scope="module")
def one_device(tiny):
    return {kind: losses(tiny, kind, 1, {}) for kind in ("supervised", "distilled", "top-k")}


@pytest.mark.parametrize(
    ("kind", "mesh", "accumulate"),
    [
        ("supervised", FSDP, 1),
        ("supervised", FSDP_TENSOR, 1),
        ("distilled", FSDP, 1),
        ("distilled", FSDP_TENSOR, 1),
        ("distilled", ALL, 2),
        ("top-k", ALL, 2),
    ],
)
def test_eight_devices_give_the_losses_of_one(tiny, one_device, kind, mesh, accumulate):
    # Sums of 512 tokens in another order differ by some 1e-7 relative; 20 steps of Adam make a little more of it.
    np.testing.assert_allclose(losses(tiny, kind, 8, mesh, accumulate), one_device[kind], rtol=2e-5)


@pytest.fixture(scope="module")
def cache(tiny, tmp_path_factory):
    """A cache of draws that one device has made."""
    root, module = tmp_path_factory.mktemp("cache"), load_module(tiny)
    run(module.supervised(), root / "teacher", quiet=True)
    student = dataclasses.replace(module.config(), teacher=Cached(module.supervised(), Draws(12)))
    return caching.build(student.sources["cache"], root / "cache", quiet=True)


def test_eight_devices_read_the_targets_that_one_device_reads(tiny, cache):
    one, eight = (losses(tiny, "draws", n, mesh, cache=cache) for n, mesh in ((1, {}), (8, FSDP_TENSOR)))
    np.testing.assert_allclose(eight, one, rtol=2e-5)


def test_eight_devices_make_the_cache_of_one(cache):
    """A sample is scored again by a teacher on eight devices: draws follow the token, not the device."""
    script = f"from jaxdistill import caching; print(caching.verify({str(cache)!r}, quiet=True)['overlap'])"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9999  # a logit rounded otherwise moves a draw in some 10^6 of them


def test_the_losses_are_those_of_learning(one_device):
    for found in one_device.values():
        assert found[19] < 0.9 * found[0]
