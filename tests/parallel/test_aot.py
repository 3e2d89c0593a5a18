"""Topologies by name, their rings, and what the compiler says of memory."""

import os
import subprocess
import sys

import pytest

from jaxdistill.errors import InputError
from jaxdistill.parallel import aot, chips


def test_names_of_slices_are_their_shapes():
    assert aot.topology("v5p-64").name == "v5p:2x4x4"  # 64 cores are 32 chips
    assert aot.topology("v5p-512").shape == (4, 8, 8)
    assert aot.topology("v5p-8").shape == (2, 2, 1)
    assert aot.topology("v5e-32").shape == (4, 8)
    assert aot.topology("v6e:16x16").chip == chips.TPU["v6e"]
    assert aot.topology("cpu:8").environment()["XLA_FLAGS"].endswith("device_count=8")


@pytest.mark.parametrize("name", ["v9:2x2", "v5p", "v5p:4x4", "v5p:0x4x4", "v5p-100", "cpu:0", "tpu:8", ""])
def test_what_does_not_exist_is_answered_with_what_does(name):
    with pytest.raises(InputError, match=r"there is no topology .* there are v4:2x2x4, v5e:4x4, v5p:2x2x4"):
        aot.topology(name)


def test_a_machine_without_gpus_says_so():
    with pytest.raises(InputError, match="gpu:8: this machine has 0 devices of this kind"):
        aot.topology("gpu:8").devices()


def test_a_dimension_that_closes_to_a_ring_is_twice_as_fast_as_an_open_line():
    v5p = chips.TPU["v5p"]
    assert v5p.line((4, 1, 1)) == v5p.links / 3
    assert v5p.line((2, 1, 1)) == v5p.links / 6
    assert v5p.line((4, 4, 4)) == v5p.links
    assert chips.GPU["H200"].line((8,)) == 450e9


def test_what_the_compiler_refuses_for_memory_is_numbers():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (128.06G) exceeds "
    )
    found = aot.out_of_memory(said + "available HBM (15.75G).")
    assert found == {"needed": round(128.06 * 2**30), "available": round(15.75 * 2**30)}
    found = aot.out_of_memory("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 34.20G of "
                              "31.25G hbm. Exceeded hbm capacity by 2.95G.")  # fmt: skip
    assert found == {"needed": round(34.2 * 2**30), "available": round(31.25 * 2**30)}
    assert aot.out_of_memory("INTERNAL: something else") is None


SLICES = """
from jax.experimental import topologies
from jaxdistill.errors import InputError
from jaxdistill.parallel.mesh import Mesh
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices
for of_replica in Mesh(data=2, fsdp=2, tensor=2).build(devices).devices:
    print(*sorted({device.slice_index for device in of_replica.flat}))
try:
    Mesh(fsdp=-1).build(devices)
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(not aot.has_libtpu(), reason="libtpu is not installed: run `make test`")
def test_slices_of_one_job_stand_along_data():
    environment = os.environ | aot.topology("v5e:2x2").environment()
    done = subprocess.run([sys.executable, "-c", SLICES], env=environment, capture_output=True, text=True, check=True)
    *slices, refusal = done.stdout.splitlines()
    assert slices == ["0", "1"]
    assert refusal.startswith("these devices are 2 slices, between which only data is shared out: set mesh.data, ")
    assert refusal.endswith("which is 1, to a multiple of 2")
