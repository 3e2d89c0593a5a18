"""What runs on one device runs on eight, with the same losses to rounding."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

TRAIN = pathlib.Path(__file__).parent / "train.py"
FSDP, FSDP_TENSOR, ALL = {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}


def losses(tiny, kind, devices, mesh, accumulate=1):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    arguments = [sys.executable, TRAIN, tiny, kind, json.dumps(mesh), str(accumulate)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["devices"] == devices
    return np.array(result["losses"])


@pytest.fixture(scope="module")
def one_device(tiny):
    return {kind: losses(tiny, kind, 1, {}) for kind in ("supervised", "distilled")}


@pytest.mark.parametrize(
    ("kind", "mesh", "accumulate"),
    [
        ("supervised", FSDP, 1),
        ("supervised", FSDP_TENSOR, 1),
        ("distilled", FSDP, 1),
        ("distilled", FSDP_TENSOR, 1),
        ("distilled", ALL, 2),
    ],
)
def test_eight_devices_give_the_losses_of_one(tiny, one_device, kind, mesh, accumulate):
    # Sums of 512 tokens in another order differ by some 1e-7 relative; 20 steps of Adam make a little more of it.
    np.testing.assert_allclose(losses(tiny, kind, 8, mesh, accumulate), one_device[kind], rtol=2e-5)


def test_the_losses_are_those_of_learning(one_device):
    for found in one_device.values():
        assert found[19] < 0.9 * found[0]
