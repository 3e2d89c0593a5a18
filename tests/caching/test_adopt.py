"""Another system's cache becomes one of ours: every window gets what was said of its own tokens, and no more."""

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jaxdistill import cli, data, evaluate, rundir
from jaxdistill.cache.foreign import distillkit, megatron
from jaxdistill.cache.reader import Cache
from jaxdistill.cache.store import Store
from jaxdistill.caching import adopt, verify
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.head import MASKED
from jaxdistill.losses import methods
from jaxdistill.losses.targets import NO_ID
from jaxdistill.run import run
from jaxdistill.teacher import Cached

torch_save = load_module(Path(__file__).parents[1] / "cache" / "foreign" / "conftest.py").torch_save

L, S, V, EOS = 8, 4, 257, 256
RESOLUTION = 1 / 64
COMPRESSION = {"d": V, "k": S, "exact_k": S, "exact_dtype": "float32", "delta_encoding": False}


def spoken(positions, seed):
    """(ids, log-probabilities) [positions, S] of a teacher's most probable tokens."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(positions, V))
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    ids = np.argsort(-logp, axis=-1)[:, :S]
    return ids, np.take_along_axis(logp, ids, -1)


def write_distillkit(directory, sequences, said=None):
    """DistillKit's files: two, with `sequences` and what was said of each of their tokens."""
    said = said or [spoken(len(tokens), seed) for seed, tokens in enumerate(sequences)]
    bits = [((ids[..., None] >> np.arange(8, -1, -1)) & 1).reshape(len(ids), -1).astype(np.uint8) for ids, _ in said]
    columns = {
        "input_ids": sequences,
        "compressed_logprobs": [np.float32(logp).view(np.uint8).tolist() for _, logp in said],
        "bytepacked_indices": [np.packbits(b, axis=-1).tolist() for b in bits],
    }
    schema = pa.schema(
        [("input_ids", pa.list_(pa.uint64()))] + [(name, pa.list_(pa.list_(pa.uint8()))) for name in list(columns)[1:]]
    )
    directory.mkdir(exist_ok=True)
    table, half = pa.table(columns, schema=schema), len(sequences) // 2
    pq.write_table(table[:half], directory / "data_0.parquet")
    pq.write_table(table[half:], directory / "data_1.parquet")
    (directory / distillkit.CONFIG).write_text(yaml.safe_dump(COMPRESSION))
    return directory


@pytest.fixture
def write_megatron(torch_save):
    """write_megatron(directory, said): an iteration for each sequence."""

    def write(directory, said):
        directory.mkdir(exist_ok=True)
        with tarfile.open(directory / "cp0_dp0__9.tar", "w") as tar:

            def add(name, content):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

            add("_meta.json", json.dumps({"hash": "a"}).encode())
            for number, (ids, logp) in enumerate(said):
                low, high = (ids[:, None] & 0xFFFF).astype(np.uint16), (ids[:, None] >> 16).astype(bool)
                tensors = {"values": [logp[:, None].astype(np.float32)], "indices_low": [low], "bit_17": [high]}
                add(f"{number}.pt.zst", pa.Codec("zstd").compress(torch_save(tensors), asbytes=True))
        return directory

    return write


def sequences(number=30, seed=0):
    """Of 2 to L + 1 tokens, some of which end a document."""
    rng = np.random.default_rng(seed)
    return [rng.choice([*range(40), EOS], rng.integers(2, L + 2)).tolist() for _ in range(number)]


def tokens(files, **fields):
    return data.Tokens(data.Sequences(str(files), validation_every=5), data.Bytes(), L, **fields)


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    return write_distillkit(tmp_path_factory.mktemp("captured"), sequences())


@pytest.fixture(scope="module")
def adopted(captured, tmp_path_factory):
    out = tmp_path_factory.mktemp("caches") / "adopted"
    return adopt(captured, "distillkit", out, tokens(captured), quiet=True)


def opened(directory):
    return Cache.open(directory, rundir.read_result(directory))


def assert_says(cache, windows, found):
    """The targets of all windows of a split are the distributions that a reader found, within the levels' distance."""
    batch = cache.attach(windows.batch(np.arange(len(windows))))
    for row, number in enumerate(windows.numbers):
        labels = len(windows.sequence(row)) - 1
        id_LS, logp_LS = found[number].id_LS[:labels], np.float64(found[number].logp_LS[:labels])
        held_LS = id_LS != NO_ID
        np.testing.assert_array_equal(batch.target.id_BLS[row, :labels], id_LS)
        tail_L = 1 - np.where(held_LS, np.exp(logp_LS), 0).sum(-1)
        # levels are off by half their distance and so is the mass that they share, which a float16 tail leaves
        error_L = RESOLUTION + tail_L / (1 - tail_L) * -np.log(tail_L) * 2**-11 + 1e-5
        difference_LS = np.abs(batch.target.logp_BLS[row, :labels] - logp_LS)
        assert (difference_LS <= error_L[:, None])[held_LS].all()
        np.testing.assert_allclose(batch.target.logtail_BL[row, :labels], np.log(tail_L), rtol=2**-11, atol=1e-5)


def test_every_window_gets_what_distillkit_kept_of_its_tokens(adopted, captured):
    dataset = data.prepare(tokens(captured), quiet=True)
    found = list(distillkit.read(captured))
    for windows in (dataset.train, dataset.held_out):
        assert_says(opened(adopted), windows, found)


def test_megatrons_order_is_that_of_the_data_before_it_is_shuffled(write_megatron, tmp_path):
    np.save(tmp_path / "ids.npy", np.random.default_rng(1).integers(0, 40, (14, L + 1)))
    said = [spoken(L, seed) for seed in range(14)]
    said[3][1][2, 2:] = -1e3  # what top-p left out
    source = write_megatron(tmp_path / "logits", said)
    adopt(source, "megatron", tmp_path / "out", tokens(tmp_path / "ids.npy"), quiet=True)
    dataset = data.prepare(tokens(tmp_path / "ids.npy"), quiet=True)
    for windows in (dataset.train, dataset.held_out):
        assert_says(opened(tmp_path / "out"), windows, list(megatron.read(source)))


def test_where_there_is_no_label_targets_are_finite_and_weigh_nothing(adopted, captured):
    dataset = data.prepare(tokens(captured), quiet=True)
    batch = opened(adopted).attach(dataset.train.batch(np.arange(-1, 20)))
    for row in range(1, 21):
        after = len(dataset.train.sequence(row - 1)) - 1
        assert (batch.weight_BL[row, after:] == 0).all()
        assert (batch.target.id_BLS[row, after:, 0] == EOS).all() and (batch.target.logp_BLS[row, after:, 0] == 0).all()
    assert not np.isnan(batch.target.logp_BLS).any() and not np.isnan(batch.target.logtail_BL).any()


def test_values_that_a_curve_left_unsorted_and_above_one_are_sorted_shares(tmp_path):
    ids, p = np.array([[5, 3, 9, 1]] * 3), np.array([[0.4, 0.42, 0.1, 0.12]] * 3)
    source = write_distillkit(tmp_path / "curved", [[1, 2, 3], [4, 5, 6]], 2 * [(ids, np.log(p))])
    adopt(source, "distillkit", tmp_path / "out", tokens(source), quiet=True)
    windows = data.prepare(tokens(source), quiet=True).train
    target = opened(tmp_path / "out").attach(windows.batch(np.array([0]))).target
    assert target.id_BLS[0, 0].tolist() == [3, 5, 1, 9]
    np.testing.assert_allclose(target.logp_BLS[0, 0], np.log(np.sort(p[0])[::-1] / p[0].sum()), atol=RESOLUTION)
    assert (target.logtail_BL[0, :2] == np.float32(MASKED)).all()


def test_only_what_the_other_cache_tells_is_there(adopted, captured):
    cache = opened(adopted)
    assert cache.scalars == () and not any("teacher" in name for name in cache.store.columns)
    batch = cache.attach(data.prepare(tokens(captured), quiet=True).batch(4, 0, 0))
    assert batch.signals == {}
    manifest = rundir.read_result(adopted)
    assert manifest["teacher"] == {"identity": None, "weights": None, "facts": {}}
    assert manifest["windows"] == {"train": 24, "validation": 6} and manifest["entries"] == S
    assert manifest["adopted"]["from"] == str(captured) and manifest["adopted"]["format"] == "distillkit"


@pytest.fixture(scope="module")
def student(tiny, adopted, captured):
    experiment = load_module(tiny).config()
    return dataclasses.replace(
        experiment,
        data=tokens(captured),
        teacher=Cached(str(adopted)),
        objective=methods.top_k("bucket"),
        steps=3,
        batch=4,
    )


@pytest.fixture(scope="module")
def trained(student, adopted):
    """The directory of its run, beside the cache."""
    run(student, adopted.parent / "student", quiet=True)
    return adopted.parent / "student"


def test_a_student_trains_from_it_and_is_validated_against_it(student, trained):
    result = rundir.read_result(trained)
    assert result["cache"] == "adopted" and set(result["validation"]) == {"cross_entropy", "top_k_kl", "tokens"}
    assert 0 < result["validation"]["top_k_kl"] < result["loss"] < 10
    dataset = data.prepare(student.data, quiet=True)
    labels = np.concatenate([batch.weight_BL.sum(axis=1) for batch in dataset.validation(4)])
    assert result["validation"]["tokens"] == labels.sum()
    per_byte = dataset.manifest["validation"]["tokens"] / dataset.manifest["validation"]["bytes"]
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / np.log(2) * per_byte)
    assert evaluate.find_teacher(trained) is None


def test_a_cache_without_validation_leaves_the_cross_entropy(student, trained, adopted, tmp_path):
    shutil.copytree(adopted, tmp_path / "adopted")
    manifest = rundir.read_result(adopted)
    windows = manifest["windows"] | {"validation": 0}
    rundir.write_json(tmp_path / "adopted" / "result.json", manifest | {"windows": windows})
    without = dataclasses.replace(student, teacher=Cached(str(tmp_path / "adopted")))
    result = run(without, tmp_path / "without", quiet=True)
    assert set(result["validation"]) == {"cross_entropy", "tokens"}
    assert result["loss"] == pytest.approx(rundir.read_result(trained)["loss"], rel=1e-6)


def test_students_of_other_splits_and_parts_find_their_targets(adopted, captured):
    source = data.Sequences(str(captured / "*.parquet"), validation_every=7)
    other = data.prepare(data.Tokens(source, data.Bytes(), L, part=(1, 2)), quiet=True)
    for windows in (other.train, other.held_out):
        assert_says(opened(adopted), windows, list(distillkit.read(captured)))


def test_a_student_of_other_data_is_refused(student, tmp_path):
    np.save(tmp_path / "other.npy", np.random.default_rng(2).integers(0, 40, (30, L + 1)))
    other = dataclasses.replace(student, data=tokens(tmp_path / "other.npy"))
    with pytest.raises(InputError, match=r"holds no targets for 4 of 4 windows .* built over windows of 8 tokens"):
        run(other, tmp_path / "student", quiet=True)


def at(x, place, value):
    x = x.copy()
    x[place] = value
    return x


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda ids, logp: (at(ids, (1, 0), 257), logp), r"names the id 257, and the tokenizer has 257: name its own"),
        (lambda ids, logp: (at(ids, (1, 0), ids[1, 1]), logp), r"names an id twice for one token"),
        (lambda ids, logp: (ids, at(logp, (1, 0), np.nan)), r"holds no log-probabilities for some token"),
        (lambda ids, logp: (ids, at(logp, 1, -1e3)), r"holds no log-probabilities for some token"),
        (lambda ids, logp: (ids, logp + 20), r"holds no log-probabilities for some token"),
        (lambda ids, logp: (ids[:-2], logp[:-2]), r"has 6 positions of 4 entries, where 9 tokens need 8 or 9 of 4"),
        (lambda ids, logp: (ids[:, :3], logp[:, :3]), r"has 8 positions of 3 entries, where 9 tokens need 8 or 9 of 4"),
    ],
)
def test_what_cannot_be_of_the_data_is_refused_naming_the_sequence(write_megatron, tmp_path, change, sentence):
    np.save(tmp_path / "ids.npy", np.random.default_rng(1).integers(0, 40, (3, L + 1)))
    source = write_megatron(tmp_path / "logits", [spoken(L, 0), spoken(L, 1), change(*spoken(L, 2))])
    with pytest.raises(InputError, match=rf"sequence 2 of .*logits {sentence}"):
        adopt(source, "megatron", tmp_path / "out", tokens(tmp_path / "ids.npy"), quiet=True)
    assert not rundir.is_finished(tmp_path / "out")


def test_another_number_of_sequences_is_refused(write_megatron, tmp_path):
    np.save(tmp_path / "ids.npy", np.random.default_rng(1).integers(0, 40, (3, L + 1)))
    for number, sentence in ((2, "holds 2 sequences, and the data 3"), (4, "holds more sequences than the data")):
        source = write_megatron(tmp_path / f"logits{number}", [spoken(L, seed) for seed in range(number)])
        with pytest.raises(InputError, match=sentence):
            adopt(source, "megatron", tmp_path / f"out{number}", tokens(tmp_path / "ids.npy"), quiet=True)


def test_distributions_of_other_tokens_are_refused(captured, tmp_path):
    other = sequences()
    other[17][1] = 41
    source = write_distillkit(tmp_path / "other", other)
    with pytest.raises(InputError, match=r"sequence 17 of .* is about other tokens than the data has there"):
        adopt(captured, "distillkit", tmp_path / "out", tokens(source), quiet=True)


def test_what_is_asked_amiss_is_refused_before_anything_is_written(captured, tmp_path):
    def ask(source=captured, format="distillkit", of=None, **more):
        adopt(source, format, tmp_path / "out", of or tokens(captured), quiet=True, **more)

    text = data.Tokens(data.Stdlib(), data.Bytes(), L)
    for arguments, sentence in (
        ({"format": "tarball"}, r"format is 'tarball'; it is 'distillkit' or 'megatron'"),
        ({"of": text}, r"let data.source be data.Sequences"),
        ({"resolution": 0.0}, r"resolution is 0.0 nats"),
        ({"source": tmp_path / "none"}, r"there is no directory .*none"),
    ):
        with pytest.raises(InputError, match=sentence):
            ask(**arguments)
    assert not (tmp_path / "out" / "columns").exists()


@pytest.fixture
def in_shards(monkeypatch):
    """Makes a shard of every eight sequences."""
    from jaxdistill.caching import plan

    monkeypatch.setattr(plan, "SHARD_TOKENS", (8 * L, 8 * L))


def stop_after(monkeypatch, shards):
    """Store.write is interrupted once it has written so many shards."""
    write = Store.write

    def interrupted(store, number, *arguments, **facts):
        if number == shards:
            raise KeyboardInterrupt
        write(store, number, *arguments, **facts)

    monkeypatch.setattr(Store, "write", interrupted)


def files(directory):
    found = sorted(path for kind in ("columns", "commits") for path in (directory / kind).rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def test_an_interrupted_import_goes_on_from_its_last_shard_to_the_same_bytes(
    in_shards, captured, tmp_path, monkeypatch
):
    adopt(captured, "distillkit", tmp_path / "calm", tokens(captured), quiet=True)
    assert len(opened(tmp_path / "calm").store.shards) == 4
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            adopt(captured, "distillkit", tmp_path / "shaken", tokens(captured), quiet=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shaken" / "commits").iterdir()}
    assert len(before) == 2 and not rundir.is_finished(tmp_path / "shaken")
    adopt(captured, "distillkit", tmp_path / "shaken", tokens(captured), quiet=True)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert files(tmp_path / "shaken") == files(tmp_path / "calm")
    results = [rundir.read_result(tmp_path / name) for name in ("shaken", "calm")]
    assert results[0] == results[1]


def test_a_source_that_changed_meanwhile_is_refused(in_shards, tmp_path, monkeypatch):
    source = write_distillkit(tmp_path / "captured", sequences())
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            adopt(source, "distillkit", tmp_path / "out", tokens(source), quiet=True)
    write_distillkit(source, sequences(), [spoken(len(x), 99) for x in sequences()])
    with pytest.raises(InputError, match=r"what .*out is made of has changed since it was begun: delete it"):
        adopt(source, "distillkit", tmp_path / "out", tokens(source), quiet=True)


def test_verify_reads_the_checksums_and_has_no_teacher_to_ask(adopted, tmp_path):
    assert verify(adopted, quiet=True) == {"shards": 1}
    shutil.copytree(adopted, tmp_path / "harmed")
    file = tmp_path / "harmed" / "columns" / "level" / "c" / "0" / "0"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(InputError, match="is damaged"):
        verify(tmp_path / "harmed", quiet=True)


def test_the_command_line_imports_verifies_and_tells(captured, adopted, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "import types\nfrom jaxdistill import data\n"
        f"tokens = data.Tokens(data.Sequences({str(captured)!r}, validation_every=5), data.Bytes(), {L})\n"
        "def config():\n    return types.SimpleNamespace(data=tokens)\n"
    )

    def command(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        return status, "".join(capsys.readouterr())

    out = tmp_path / "imported"
    labels = sum(len(x) - 1 for x in sequences())
    given = ("cache", "import", captured, "--format", "distillkit", "--data", file, "--out", out, "--quiet")
    status, said = command(*given)
    assert status == 0 and said.endswith(f"bytes a token: {out}\n") and said.startswith(f"{labels} tokens, ")
    assert files(out) == files(adopted)
    assert command(*given)[0] == 0
    status, said = command(*given, "--resolution", "0.5")
    assert status == 2 and "holds another experiment (resolution is 0.015625 there and 0.5 here)" in said
    assert command("cache", "verify", out, "--quiet") == (
        0,
        "1 shards are whole\nthey are another system's targets, so there is no teacher here to score a sample with\n",
    )
    status, said = command("cache", "info", out)
    assert status == 0 and f"unknown, of distillkit in {captured}" in "".join(said.split("\n")).replace("  ", "")
    status, said = command("cache", "slice", out, "--first", "2", "--out", tmp_path / "sliced")
    assert status == 2 and "is made of another system's cache" in said
    status, said = command("run", out)
    assert status == 2 and "continue it with jaxdistill cache import" in said
