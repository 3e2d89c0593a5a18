"""Positions, experts and tables: decoders on eight devices give the values and gradients of one."""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("split_models.py")
QUICK = " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, not to run
DEFAULT = ("context and tensor", "every axis")
OTHERS = tuple(case for case in runpy.run_path(str(SCRIPT))["CASES"] if case not in DEFAULT)


def run(cases):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8" + QUICK, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, SCRIPT, *cases]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | flags, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    return run(DEFAULT)


@pytest.mark.parametrize("case", DEFAULT)
def test_a_decoder_on_eight_devices_gives_what_it_gives_on_one(found, case):
    # sums over the width, the keys and, in gradients, the tokens in another order
    assert found[case]["apart"] < 1e-5


@pytest.mark.slow
def test_so_does_every_other_way_to_lay_it_out():
    others = run(OTHERS)
    assert {case: others[case]["apart"] < 1e-5 for case in OTHERS} == dict.fromkeys(OTHERS, True)


def test_of_what_positions_share_out_keys_and_values_alone_are_gathered(found):
    """On fsdp 2, context 2 and tensor 2, a device has 4 sequences, and gathers 32 positions of one key head of 8."""
    whole_length = [shape for shape in found["context and tensor"]["gathered"] if shape[:2] == [4, 32]]
    assert whole_length == [[4, 32, 1, 8]]


def test_activations_shrink_with_the_context_axis(found):
    """By four, less the scores that the mask hides: a device that has all positions never forms half of them."""
    whole, a_fourth = found["temporary"]
    assert a_fourth < 0.45 * whole
