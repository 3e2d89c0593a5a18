"""Surgery on a mesh: what is cut or patched lies as its letters say, and has the numbers of one host."""

import os
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parent / "on_eight_devices.py"


def test_models_on_a_mesh_are_cut_and_patched_where_they_lie():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "held 8\n"
