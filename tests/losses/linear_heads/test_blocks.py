"""Block sizes: every chip of the table has some, and sizes that no kernel has are refused."""

import dataclasses

import pytest

from jaxdistill.errors import InputError
from jaxdistill.losses.linear_heads.blocks import Tile, TpuBlocks, for_device


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"])
def test_a_tpu_keeps_its_backward_chunk_in_vmem(kind):
    blocks = for_device(kind)
    width, chunk, vocabulary = 4096, blocks.chunk, blocks.backward.vocabulary
    assert isinstance(blocks, TpuBlocks)
    assert chunk * width * (2 + 4) + 2 * vocabulary * width * (2 + 4 + 4) < blocks.vmem_bytes


def test_a_gpu_is_known_by_the_start_of_its_name():
    assert for_device("NVIDIA H100 80GB HBM3") == for_device("NVIDIA H200")


def test_a_chip_that_is_not_in_the_table_is_refused():
    with pytest.raises(InputError, match=r"no block sizes are known for 'TPU v3', only for .*: pass blocks="):
        for_device("TPU v3")


@pytest.mark.parametrize("sizes", [(100, 128), (128, 0), (-128, 128), (128, 200)])
def test_a_tile_that_no_registers_fill_is_refused(sizes):
    with pytest.raises(InputError, match="is no positive multiple of 128"):
        Tile(*sizes)


@pytest.mark.parametrize("change", [{"chunk": 300}, {"chunk": 0}, {"cores": 3}, {"vmem_bytes": 0}])
def test_tpu_blocks_that_do_not_fit_each_other_are_refused(change):
    with pytest.raises(InputError):
        dataclasses.replace(for_device("TPU v5 lite"), **change)
