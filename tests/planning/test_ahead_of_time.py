"""Small steps compiled for TPUs that are not here, with the vocabulary on two of four chips."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from jaxdistill.parallel import aot

SCRIPT = pathlib.Path(__file__).with_name("compile_losses.py")
LOSSES = ["cross_entropy", "forward_kl", "top_k", "sampled", "cross_entropy/context"]
V, D, ROWS, LENGTH = 2048, 64, 2, 128  # of the student; rows on a chip

pytestmark = pytest.mark.skipif(
    not aot.has_libtpu(), reason="libtpu is not installed: run `make test`, or pip install 'jaxdistill[tpu]'"
)


def compile_for(name, *losses):
    environment = os.environ | aot.topology(name).environment()
    command = [sys.executable, str(SCRIPT), name, *losses]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def check(program):
    """Neither the embedding nor logits cross between parts of the vocabulary, and attention forms no scores."""
    columns, logits = V * D // 2 * 2, ROWS * LENGTH * V * 2  # bytes of a chip's columns of W and of its logits, bf16
    crossing = [one for one in program["sent"] if "tensor" in one["axes"]]
    assert {"all-reduce"} <= {one["kind"] for one in crossing}
    assert max(one["bytes"] for one in crossing) < min(columns, logits)
    widths = [one for one in program["sent"] if one["kind"] == "all-gather" and "tensor" not in one["axes"]]
    assert max(one["bytes"] for one in widths) >= V // 2 * D * 2  # each chip's rows of W, whole
    assert {name.split("_")[2] for name in program["kernels"] if name.startswith("splash")} == {"fwd", "dq", "dkv"}
    assert program["loops"] == 0


@pytest.mark.parametrize(("name", "loss"), [("v5e:2x2", "forward_kl/context"), ("v6e:2x2", "sampled")])
def test_a_step_compiles_and_keeps_the_vocabulary_apart(name, loss):
    check(compile_for(name, loss)[loss])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1", "tpu7x:2x2x1"])
def test_every_kind_of_loss_compiles_and_keeps_the_vocabulary_apart(name):
    for program in compile_for(name, *LOSSES).values():
        check(program)
