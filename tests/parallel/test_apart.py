"""A teacher on devices of its own teaches what it teaches beside the student."""

import dataclasses
import functools
import json
import operator
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdistill import metrics
from jaxdistill.experiment import load_module
from jaxdistill.run import run

SCRIPT = Path(__file__).parent / "on_two_meshes.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the process of eight devices prints, and what a run on one device gives with the same teacher beside it."""
    root, module = tmp_path_factory.mktemp("apart"), load_module(SCRIPT)
    run(dataclasses.replace(module.PLAIN, steps=1), root / "teacher", quiet=True)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    arguments = [sys.executable, SCRIPT, root / "teacher", root / "apart"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    beside = dataclasses.replace(module.DRAWS, teacher=dataclasses.replace(module.DRAWS.teacher, run=root / "teacher"))
    result = run(beside, root / "beside", quiet=True)
    rows = metrics.read(root / "beside" / "metrics.jsonl")
    beside = [row["loss"] for row in rows if "loss" in row], result
    return functools.reduce(operator.or_, map(json.loads, done.stdout.splitlines()), {"beside": beside})


@pytest.mark.parametrize("kind", ["top-k", "chunks"])
def test_the_losses_are_those_of_one_device(found, kind):
    beside, apart = found[kind]
    assert len(beside) == 20
    # Sums of 512 tokens in another order differ by some 1e-7 relative; 20 steps of Adam make a little more of it.
    np.testing.assert_allclose(apart, beside, rtol=2e-5)


def test_a_run_draws_the_same_tokens_and_measures_what_they_tell(found):
    (apart, result), (beside, whole) = found["run"], found["beside"]
    np.testing.assert_allclose(apart, beside, rtol=2e-5)
    scores, dense = result["validation"], whole["validation"]
    np.testing.assert_allclose(scores["cross_entropy"], dense["cross_entropy"], rtol=2e-5)
    # 12 draws a token, 1280 tokens: the spread of -log q under the teacher, some 3 nats at most, over sqrt(15360)
    np.testing.assert_allclose(scores["forward_kl"], dense["forward_kl"], rtol=0, atol=0.1)


def test_int8_is_the_same_on_any_devices_and_close_to_what_it_was(found):
    apart, beside = found["run"][1]["teacher_int8"], found["beside"][1]["teacher_int8"]
    assert apart["bytes"] == beside["bytes"] < apart["bytes_before"] / 2
    # the KL is of the order of the squared rounding: a mean of differences whose own rounding is near 1e-7
    np.testing.assert_allclose(apart["kl"], beside["kl"], rtol=0.01, atol=1e-6)
    assert 1e-6 < beside["kl"] < 1e-2
