"""A teacher on a device of its own, through a whole run. Its losses on more devices are in test_equal_losses."""

import functools
import json
import operator
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("on_two_devices.py")
DEVICES = "--xla_force_host_platform_device_count=2"
QUICK = " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, not to run


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{placement: (losses, result)}; the script also checks what cannot be seen from outside."""
    environment = os.environ | {"XLA_FLAGS": DEVICES + QUICK, "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, SCRIPT, tmp_path_factory.mktemp("runs")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return functools.reduce(operator.or_, map(json.loads, done.stdout.splitlines()))


def test_a_run_draws_the_same_tokens_and_measures_what_they_tell(found):
    (beside, whole), (apart, result) = found["beside"], found["apart"]
    assert len(beside) == 20
    # Sums of 512 tokens in another order differ by some 1e-7 relative; 20 steps of Adam make a little more of it.
    np.testing.assert_allclose(apart, beside, rtol=2e-5)
    scores, dense = result["validation"], whole["validation"]
    np.testing.assert_allclose(scores["cross_entropy"], dense["cross_entropy"], rtol=2e-5)
    # 12 draws of each of 1280 tokens: the spread of -log q under the teacher, some 3 nats at most, over sqrt(15360)
    np.testing.assert_allclose(scores["forward_kl"], dense["forward_kl"], rtol=0, atol=0.1)


def test_int8_is_the_same_wherever_it_is_and_close_to_what_it_was(found):
    apart, beside = (found[placement][1]["teacher_int8"] for placement in ("apart", "beside"))
    assert apart["bytes"] == beside["bytes"] < 0.75 * apart["bytes_before"]
    # the KL is of the order of the rounding squared: a mean of differences that are themselves rounded near 1e-7
    np.testing.assert_allclose(apart["kl"], beside["kl"], rtol=0.01, atol=1e-6)
    assert 1e-6 < beside["kl"] < 1e-2
