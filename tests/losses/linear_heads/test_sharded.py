"""The ops with tokens and vocabulary shared out over eight devices: the values and gradients of one device."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

D, V = 16, 1024
OPS = ["forward", "recompute", "picks", "kernels forward", "kernels recompute"]


@pytest.fixture(scope="module")
def found():
    script = pathlib.Path(__file__).with_name("on_eight_devices.py")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=os.environ | flags, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("mesh", ["(8, 1, 1)", "(1, 1, 8)", "(1, 2, 4)", "(2, 2, 2)"])
def test_an_op_on_eight_devices_gives_what_it_gives_on_one(found, op, mesh):
    # sums over V, D and the tokens in another order: a few sqrt(n) u of the largest number
    assert found[f"{op} {mesh}"]["apart"] < 1e-5


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("mesh", "shards"), [("(1, 1, 8)", 8), ("(1, 2, 4)", 4), ("(2, 2, 2)", 2)])
def test_neither_logits_nor_the_embedding_are_gathered_over_the_vocabulary(found, op, mesh, shards):
    # what is gathered is a shard's rows of the two embeddings, over their columns
    assert found[f"{op} {mesh}"]["gathered"] <= V // shards * 2 * D
