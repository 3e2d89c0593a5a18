"""Every loss with tokens, positions and vocabulary shared out over eight devices: the values and gradients of one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

D = 16
KINDS = ("whole", "top-k", "sampled", "tokenwise")
LAYOUTS = ("vocabulary", "tokens, positions, width and vocabulary", "vocabulary over two axes")
QUICK = " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, not to run


@pytest.fixture(scope="module")
def found():
    script = pathlib.Path(__file__).with_name("losses_on_eight_devices.py")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8" + QUICK, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=os.environ | flags, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_loss_gives_what_it_gives_on_one_device(found, kind, layout):
    # sums over V, D and the tokens in another order: a few sqrt(n) u of the largest number
    assert found[f"{kind}: {layout}"]["apart"] < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_loss_gathers_logits_or_an_embedding_over_the_vocabulary(found, kind, layout):
    # what is gathered is a shard's rows of an embedding, the teacher's of twice the width
    case = found[f"{kind}: {layout}"]
    assert case["gathered"] <= case["rows"] * 2 * D


def test_what_sorts_all_logits_of_a_token_is_refused_by_name(found):
    for name, sentence in zip(("AdaptiveKL", "SortedL1", "Sinkhorn", "Truncate.top_p"), found["refused"], strict=True):
        assert f"{name} needs all logits of a token at once" in sentence
        assert "set mesh.tensor to 1, or choose another table" in sentence
