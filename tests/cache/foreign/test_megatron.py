"""Megatron-LM's tar shards, written here from their description, come back as the sequences of the run."""

import io
import json
import tarfile

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from jaxdistill.cache.foreign import megatron
from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.targets import NO_ID

L, B, K, V = 5, 2, 3, 131_072
META = {"hash": "abc", "identifiers": {}, "saver": {"k": K}}


def micro_batch(number: int, dtype: str = "float16") -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities, ids) [L, B, K] of the number-th micro-batch of a run."""
    rng = np.random.default_rng(number)
    return -np.sort(rng.gamma(2.0, size=(L, B, K)), axis=-1).astype(jnp.dtype(dtype)), rng.integers(V, size=(L, B, K))


@pytest.fixture
def write(torch_save, tmp_path):
    """write({name of a shard: {iteration: [micro-batch, ...]}}) -> the directory."""

    def member(micro_batches):
        values, ids = zip(*micro_batches, strict=True)
        low, high = [(x & 0xFFFF).astype(np.uint16) for x in ids], [(x >> 16).astype(bool) for x in ids]
        data = torch_save({"values": list(values), "indices_low": low, "bit_17": high})
        return pa.Codec("zstd", 3).compress(data, asbytes=True)

    def write(shards, meta=META):
        for shard, iterations in shards.items():
            members = {"_meta.json": json.dumps(meta).encode()} if meta else {}
            members |= {f"{number}.pt.zst": member(found) for number, found in iterations.items()}
            with tarfile.open(tmp_path / shard, "w") as tar:
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return tmp_path

    return write


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_sequences_come_in_the_order_of_the_run_with_the_ids_of_17_bits(write, dtype):
    # two iterations of two micro-batches on each of two ranks: rank d of n has the micro-batches d, d + n, ...
    made = [micro_batch(number, dtype) for number in range(8)]
    directory = write(
        {
            "cp0_dp0__3.tar": {3: [made[0], made[2]]},
            "cp0_dp0__10.tar": {10: [made[4], made[6]]},
            "cp0_dp1__10.tar": {3: [made[1], made[3]], 10: [made[5], made[7]]},
        }
    )
    found = list(megatron.read(directory))
    assert len(found) == 8 * B
    for number, sequence in enumerate(found):
        values, ids = made[number // B]
        assert sequence.tokens is None and sequence.id_LS.dtype == np.int32 and sequence.logp_LS.dtype == np.float32
        np.testing.assert_array_equal(sequence.id_LS, ids[:, number % B])
        np.testing.assert_array_equal(sequence.logp_LS, values[:, number % B].astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_entries_that_top_p_left_out_hold_nothing_whatever_their_id_became(write, dtype):
    values, ids = micro_batch(0, dtype)
    values[1, :, 2], ids[1, :, 2] = -1e3, -1
    ids[0, 0, 0] = V - 1  # which -1 becomes, too
    one, _ = megatron.read(write({"cp0_dp0__0.tar": {0: [(values, ids)]}}))
    assert one.id_LS[0, 0] == V - 1 and one.id_LS[1, 2] == NO_ID and one.logp_LS[1, 2] == np.float32(MASKED)
    assert (one.id_LS == NO_ID).sum() == 1


ONE = {0: [micro_batch(0)]}


@pytest.mark.parametrize(
    ("shards", "sentence"),
    [
        ({}, r"has shards of the ranks \[\]: all of them are needed"),
        ({"cp0_dp1__0.tar": ONE}, r"has shards of the ranks \[1\]: all of them are needed, from 0 on"),
        ({"cp0_dp0__0.tar": ONE, "cp1_dp0__0.tar": ONE}, "divided among context-parallel ranks"),
        ({"cp0_dp0__0.tar": ONE, "cp0_dp1__1.tar": {1: ONE[0]}}, r"its ranks differ \(iterations \[0, 1\]\)"),
        ({"cp0_dp0__0.tar": ONE, "cp0_dp1__0.tar": {0: 2 * ONE[0]}}, "its ranks differ"),
        ({"cp0_dp0__1.tar": {0: ONE[0], 1: ONE[0]}, "cp0_dp1__0.tar": ONE}, r"iterations \[1, None\]"),
        ({"cp0_dp0__0.tar": ONE, "cp0_dp0__1.tar": ONE}, "holds iteration 0 after 0: a run was written over another"),
        ({"cp0_dp0__0.tar": {0: [(micro_batch(0)[0][:1], micro_batch(0)[1])]}}, "holds no log-probabilities: tensors"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(write, shards, sentence):
    with pytest.raises(InputError, match=sentence):
        list(megatron.read(write(shards)))


def test_shards_of_two_runs_and_files_of_others_are_refused(write):
    write({"cp0_dp1__0.tar": ONE}, META | {"hash": "def"})
    with pytest.raises(InputError, match=r"mixes shards of several runs.*\['abc', 'def'\]"):
        list(megatron.read(write({"cp0_dp0__0.tar": ONE})))
    with pytest.raises(InputError, match=r"begins with 0\.pt\.zst, not with _meta\.json"):
        list(megatron.read(write({"cp0_dp0__0.tar": ONE}, meta=None)))
    with pytest.raises(InputError, match=r"damaged _meta\.json"):
        list(megatron.read(write({"cp0_dp0__0.tar": ONE}, meta=[1])))


def test_a_shard_that_ends_early_or_is_damaged_is_refused(write):
    directory = write({"cp0_dp0__0.tar": {0: [micro_batch(0), micro_batch(1)]}})
    path = directory / "cp0_dp0__0.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:1800])
    with pytest.raises(InputError, match=r"cp0_dp0__0\.tar cannot be read"):
        list(megatron.read(directory))
    for place, sentence in ((1536, "damaged"), (1700, r"this is no file of torch\.save")):  # its content starts at 1536
        path.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
        with pytest.raises(InputError, match=rf"0\.pt\.zst of .*cp0_dp0__0\.tar: {sentence}"):
            list(megatron.read(directory))
