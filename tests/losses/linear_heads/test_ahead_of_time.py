"""The TPU kernels compiled by Mosaic for chips that are not here, through libtpu."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from jaxdistill.parallel import aot

CHIPS = ["v5e", "v5p", "v6e", "tpu7x"]
SCRIPT = pathlib.Path(__file__).with_name("compile_for_tpu.py")
T = 2048

pytestmark = pytest.mark.skipif(
    not aot.has_libtpu(),
    reason="libtpu is not installed: run `make test`, or pip install 'jaxdistill[tpu]'",
)


def compile_for(chip, D, V):
    environment = os.environ | aot.topology("v5e:2x2").environment()
    command = [sys.executable, str(SCRIPT), chip, str(D), str(V)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def check(programs, V):
    """The intended kernels are there, no fp32 logits are moved, and the lean pair has no memory that grows with T V."""
    elementwise, pair = ["sparse_gradient", "sparse_statistics"], ["sparse_backward", "sparse_forward"]
    assert {name: program["kernels"] for name, program in programs.items()} == {
        name: pair if name.startswith("lean") else elementwise for name in programs
    }
    assert not programs["elementwise"]["moves_logits"]
    logits = 4 * T * V
    growth = programs["lean, more tokens"]["temporary"] - programs["lean"]["temporary"]
    assert growth < logits / 20
    assert programs["lean"]["temporary"] < logits / 4


@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile_for_every_chip(chip):
    check(compile_for(chip, D=256, V=32_000), V=32_000)


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile_at_the_size_of_a_large_head(chip):
    check(compile_for(chip, D=4096, V=128_256), V=128_256)
