"""A teacher on devices of its own teaches what it teaches beside the student."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdistill.experiment import load_module
from jaxdistill.run import run

SCRIPT = Path(__file__).parent / "on_two_meshes.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{kind: (losses and validation on one device, those of 4 + 4 devices)}."""
    root, module = tmp_path_factory.mktemp("apart"), load_module(SCRIPT)
    for name, teacher in module.TEACHERS.items():
        run(teacher, root / "teachers" / name, quiet=True)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    with subprocess.Popen(
        [sys.executable, SCRIPT, root], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        beside = {}
        for kind in module.STUDENTS:
            result = run(module.student(kind, root, apart=False), root / "beside" / kind, quiet=True)
            beside[kind] = {"losses": module.losses(root / "beside" / kind), "validation": result["validation"]}
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    apart = json.loads(out.splitlines()[-1])
    return {kind: (beside[kind], apart[kind]) for kind in beside}


@pytest.mark.parametrize("kind", ["top-k", "draws", "chunks"])
def test_the_losses_are_those_of_one_device(results, kind):
    beside, apart = results[kind]
    assert len(beside["losses"]) == 20
    # Sums of 512 tokens in another order differ by some 1e-7 relative; 20 steps of Adam make a little more of it.
    np.testing.assert_allclose(apart["losses"], beside["losses"], rtol=2e-5)
    np.testing.assert_allclose(apart["validation"]["cross_entropy"], beside["validation"]["cross_entropy"], rtol=2e-5)
