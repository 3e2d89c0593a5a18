"""A cache holds what its teacher says, whoever builds it and however often they are killed; all else is refused."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxdistill import caching, config, data, frozen, rundir, sweep
from jaxdistill.cache.reader import Cache
from jaxdistill.cache.samplers import PPS, Draws, Top, TopP
from jaxdistill.cache.states import LastStates
from jaxdistill.caching import cut, verify
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.losses import methods
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.hidden import Layers
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.losses.objective import Term
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.states import CosineDistance
from jaxdistill.losses.targets import Dense
from jaxdistill.run import run
from jaxdistill.teacher import Cached, Online

KEPT = {"draws": Draws(12), "top": Top(8), "nucleus": TopP(0.9, 8), "pps": PPS(6)}


@pytest.fixture(scope="module")
def student(tiny):
    """student(keep, **changes of Cached): an experiment that reads a cache."""

    def make(keep, **changes):
        objective = methods.top_k("bucket") if isinstance(keep, (Top, TopP)) else methods.random_sampling_kd()
        experiment = load_module(tiny).config()
        teacher = Cached(load_module(tiny).supervised(), keep, **changes)
        return dataclasses.replace(experiment, objective=objective, teacher=teacher)

    return make


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny, student):
    """A directory with a teacher and a cache of each kind."""
    root = tmp_path_factory.mktemp("caches")
    run(load_module(tiny).supervised(), root / "teacher", experiment_file=tiny, quiet=True)
    for name, keep in KEPT.items():
        caching.build(student(keep).sources["cache"], root / name, experiment_file=tiny, quiet=True)
    return root


def opened(directory, first=None):
    return Cache.open(directory, rundir.read_result(directory), first)


def files(directory):
    """The content of every file that a build decides."""
    found = sorted(p for kind in ("columns", "commits") for p in (directory / kind).rglob("*") if p.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


@pytest.mark.parametrize("name", KEPT)
def test_a_row_holds_what_the_sampler_makes_of_the_teacher(root, student, name):
    cache, recipe = opened(root / name), student(KEPT[name]).sources["cache"]
    dataset = data.prepare(recipe.data, quiet=True)
    mesh = recipe.mesh.build(jax.devices()[:1])
    model, params = frozen.load(root / "teacher", "float32", dataset.tokenizer, mesh)
    windows = np.array([3, 700, 1500])
    batch = dataset.train.batch(windows)
    h_BLD, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
    head, label_BL = model.head(params, h_BLD), jax.numpy.asarray(batch.label_BL)
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), 0)
    index_BL = jax.numpy.asarray(windows[:, None] * 32 + np.arange(32), jax.numpy.uint32)
    said = KEPT[name](Dense(label_BL, head), key, index_BL, Sharding())
    held = cache.attach(batch)
    assert type(held.target) is type(said)
    value = {"draws": "weight_BLS", "pps": "weight_BLS"}.get(name, "logp_BLS")
    for place in np.ndindex(3, 32):
        stored, spoken = (
            {
                int(i): float(w)
                for i, w in zip(np.asarray(t.id_BLS[place]), np.asarray(getattr(t, value)[place]), strict=True)
                if i < 257
            }
            for t in (held.target, said)
        )
        assert stored.keys() == spoken.keys()
        # draws are exact; levels are 1/64 nats apart, random ones off by up to all of it, top-K normalised again
        loose = {"draws": 1e-6, "pps": 1 / 60}.get(name, 0)
        np.testing.assert_allclose(
            [stored[i] for i in spoken], list(spoken.values()), rtol=loose, atol=0 if loose else 1 / 32
        )
    logp_BLV = np.asarray(jax.nn.log_softmax(head.logits()), np.float64)
    entropy_BL = -(np.exp(logp_BLV) * logp_BLV).sum(-1)
    np.testing.assert_allclose(held.signals["teacher_entropy_BL"], entropy_BL, rtol=2**-10)
    loss_BL = -np.take_along_axis(logp_BLV, batch.label_BL[..., None], -1)[..., 0]
    np.testing.assert_allclose(held.signals["teacher_cross_entropy_BL"], loss_BL, rtol=2**-10)


def test_targets_follow_their_windows_into_any_batch_and_order(root, student):
    cache = opened(root / "draws")
    dataset = data.prepare(student(Draws(12)).data, quiet=True)
    batch = dataset.batch(16, seed=5, step=3)
    together = cache.attach(batch).target
    for row in (0, 7, 15):
        alone = cache.attach(jax.tree.map(lambda x, row=row: x[row : row + 1], batch)).target
        np.testing.assert_array_equal(together.id_BLS[row], alone.id_BLS[0])
        np.testing.assert_array_equal(together.weight_BLS[row], alone.weight_BLS[0])


def test_the_batch_of_the_teacher_changes_no_target(root, student, tmp_path):
    shutil.copytree(root / "teacher", tmp_path / "teacher")
    caching.build(student(Draws(12)).sources["cache"], tmp_path / "again", batch=48, quiet=True)
    rows = np.arange(0, 1600, 7)
    a, b = (opened(d).store.read(rows) for d in (root / "draws", tmp_path / "again"))
    for name in ("id", "count", "number", "key"):
        # a matmul of another shape may round a logit otherwise, which moves a draw in some 10^6 of them
        assert (a[name] == b[name]).mean() > 0.9999


def test_parts_built_by_several_make_the_cache_that_one_would(root, student, tiny, tmp_path):
    source = data.Markov(alphabet=16, order=1, concentration=0.3, seed=0, num_documents=280, length=500)
    teacher = load_module(tiny).supervised()
    teacher = dataclasses.replace(teacher, data=dataclasses.replace(teacher.data, source=source), steps=2)
    run(teacher, tmp_path / "teacher", quiet=True)
    recipe = dataclasses.replace(student(Draws(3)).sources["cache"], teacher=teacher, data=teacher.data)
    caching.build(recipe, tmp_path / "one", quiet=True)
    for index in (1, 0, 2):
        assert not rundir.is_finished(tmp_path / "three")
        caching.build(recipe, tmp_path / "three", part=(index, 3), quiet=True)
    assert len(opened(tmp_path / "three").store.shards) >= 3
    assert files(tmp_path / "one") == files(tmp_path / "three")
    assert rundir.read_result(tmp_path / "one") == rundir.read_result(tmp_path / "three")


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_build_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(kills, tiny, tmp_path):
    """The real command, killed by SIGKILL at random moments while it writes."""
    source = f"data.source.num_documents={200 * (kills + 2)}"
    file = tmp_path / "draws.py"
    file.write_text(
        f"from jaxdistill.experiment import load_module\ntiny = load_module({str(tiny)!r})\n"
        "import dataclasses\nfrom jaxdistill.teacher import Cached, Draws\nfrom jaxdistill.losses import methods\n"
        "def config():\n    return dataclasses.replace(tiny.config(), objective=methods.random_sampling_kd(), "
        "teacher=Cached(dataclasses.replace(tiny.supervised(), steps=2), Draws(12)))\n"
    )

    def command(out):
        arguments = [
            sys.executable,
            "-m",
            "jaxdistill",
            "cache",
            "build",
            file,
            source,
            "--quiet",
            "--out",
            tmp_path / out,
        ]
        return subprocess.Popen([*map(str, arguments)], stderr=subprocess.PIPE, text=True)

    assert command("calm").wait() == 0
    shards = len(opened(tmp_path / "calm-cache").store.shards)
    assert shards >= kills + 2
    generator, killed = random.Random(0), 0
    commits = tmp_path / "shaken-cache" / "commits"
    while killed < kills:
        before = len(list(commits.glob("*.json")))
        process = command("shaken")
        while len(list(commits.glob("*.json"))) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.1)
        assert process.poll() is None  # or there would be nothing to kill
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    assert command("shaken").wait() == 0
    assert files(tmp_path / "calm-cache") == files(tmp_path / "shaken-cache")
    assert verify(tmp_path / "shaken-cache", quiet=True)["overlap"] == 1.0


@pytest.fixture
def harmed(root, tmp_path):
    """A copy to do harm to, with its teacher."""
    shutil.copytree(root, tmp_path / "copy")
    return tmp_path / "copy" / "draws"


def test_a_flipped_byte_is_refused_by_verify_and_by_the_student_that_meets_it(harmed, student):
    file = harmed / "columns" / "count" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    for place in range(1000, len(content) - 1000, 97):
        content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="is damaged; delete"):
        verify(harmed, quiet=True)
    with pytest.raises(InputError, match="cannot be read"):
        run(student(Draws(12)), harmed.parent / "student", quiet=True)


@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_a_shard_that_is_not_whole_is_refused_before_the_student_starts_and_mended_by_building(
    harmed, root, student, harm
):
    file = harmed / "columns" / "count" / "c" / "0" / "0"
    if harm == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    with pytest.raises(InputError, match=r"delete .*000000.json and build the cache again"):
        run(student(Draws(12)), harmed.parent / "student", quiet=True)
    (harmed / "result.json").unlink()
    with pytest.raises(InputError, match=r"delete .*000000.json and build the cache again"):
        caching.build(rundir.read_config(harmed), harmed, quiet=True)
    (harmed / "commits" / "000000.json").unlink()
    caching.build(rundir.read_config(harmed), harmed, quiet=True)
    assert files(harmed) == files(root / "draws")


def test_two_builders_of_one_directory_are_refused(harmed):
    with rundir.lock(harmed), pytest.raises(InputError, match="another process is at work"):
        caching.build(rundir.read_config(harmed), harmed, quiet=True)


def test_too_little_space_is_said_before_anything_is_computed(root, student, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    recipe = dataclasses.replace(student(Draws(12)).sources["cache"], seed=9)
    with pytest.raises(InputError, match=r"needs about .* GB more, and .* has 1e-06 GB free"):
        caching.build(recipe, root / "full", quiet=True)
    assert not list((root / "full").glob("commits/*"))


def test_other_recipes_and_other_files_in_a_directory_are_refused(root, student, tmp_path):
    with pytest.raises(InputError, match=r"holds another experiment \(keep.rounds is 12 there and 13 here\)"):
        caching.build(student(Draws(13)).sources["cache"], root / "draws", quiet=True)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="exists and is not a run directory"):
        caching.build(student(Draws(12)).sources["cache"], tmp_path, quiet=True)


def test_other_data_or_tokens_are_refused_before_the_student_starts(root, student):
    given = dataclasses.replace(student(Draws(12)), teacher=Cached(str(root / "draws")))
    other = dataclasses.replace(given.data, source=dataclasses.replace(given.data.source, seed=1))
    with pytest.raises(InputError, match=r"holds no targets for 8 of 8 windows .* built over windows of 32 tokens"):
        run(dataclasses.replace(given, data=other), root / "other-data", quiet=True)
    with pytest.raises(InputError, match="holds no targets for 8 of 8 windows"):
        run(dataclasses.replace(given, data=dataclasses.replace(given.data, length=16)), root / "length", quiet=True)
    manifest = rundir.read_json(root / "draws" / "result.json")
    copy = root / "other-tokenizer"
    shutil.copytree(root / "draws", copy)
    rundir.write_json(copy / "result.json", manifest | {"tokenizer": "0" * 64})
    with pytest.raises(InputError, match="was made with another tokenizer"):
        run(dataclasses.replace(given, teacher=Cached(str(copy))), root / "tokens", quiet=True)
    rundir.write_json(copy / "result.json", manifest | {"cache_version": 99})
    with pytest.raises(InputError, match="has cache format 99"):
        run(dataclasses.replace(given, teacher=Cached(str(copy))), root / "version", quiet=True)


def test_a_teacher_that_was_trained_anew_is_refused(harmed, tiny, student):
    shutil.rmtree(harmed.parent / "teacher")
    anew = dataclasses.replace(load_module(tiny).supervised(), seed=1)
    run(anew, harmed.parent / "teacher", quiet=True)
    recipe = dataclasses.replace(rundir.read_config(harmed), teacher=str(harmed.parent / "teacher"))
    (harmed / "config.txt").write_text(config.text(recipe))
    with pytest.raises(InputError, match="it was trained anew since"):
        verify(harmed, quiet=True)
    reader = dataclasses.replace(student(Draws(12)), teacher=Cached(str(harmed.parent / "teacher"), Draws(12)))
    with pytest.raises(InputError, match="build another cache"):
        run(reader, harmed.parent / "student", quiet=True)


@pytest.mark.parametrize("what", ["teacher", "data"])
def test_shards_of_another_teacher_or_text_are_not_added_to(harmed, what):
    (harmed / "result.json").unlink()
    (harmed / "commits" / "000000.json").unlink()
    planned = rundir.read_json(harmed / "plan.json")
    rundir.write_json(harmed / "plan.json", planned | {what: {"weights": "0"} if what == "teacher" else "0"})
    with pytest.raises(InputError, match=f"the {what} has changed since the building of .* began"):
        caching.build(rundir.read_config(harmed), harmed, quiet=True)
    assert not (harmed / "commits" / "000000.json").exists()
    rundir.write_json(harmed / "plan.json", planned)
    caching.build(rundir.read_config(harmed), harmed, quiet=True)


def test_a_student_of_a_cache_learns_and_knows_its_distance_from_the_teacher(root, student):
    """The KL that draws tell is that of the whole distribution, up to chance."""
    cached = run(student(Draws(12)), root / "student", quiet=True)
    assert cached["cache"] == "draws" and cached["teacher"] == "teacher" and cached["L_T"] > 0
    whole = dataclasses.replace(student(Draws(12)), objective={"kl": Term(ForwardKL())}, teacher=None)
    teacher = dataclasses.replace(whole, teacher=Online(student(Draws(12)).teacher.run))
    exact = run(teacher, root / "online", quiet=True)
    # 12 draws of 64 x 32 tokens: the standard error of their cross-entropy is about 2 / sqrt(12 2048)
    assert abs(cached["validation"]["forward_kl"] - exact["validation"]["forward_kl"]) < 0.1
    assert abs(cached["validation"]["teacher_cross_entropy"] - exact["L_T"]) < 2e-3
    assert cached["loss"] < 3.5


def test_hidden_states_in_eight_bits_give_the_whole_distribution_to_any_loss(root, student, tmp_path):
    shutil.copytree(root / "teacher", tmp_path / "teacher")
    dense = dataclasses.replace(student(LastStates(32)), objective={"kl": Term(ReverseKL())})
    caching.build(dense.sources["cache"], tmp_path / "states", quiet=True)
    assert verify(tmp_path / "states", quiet=True)["overlap"] == 1.0
    assert rundir.read_result(tmp_path / "states")["bytes_per_token"] < 32 + 4 + 6 + 1
    ours = run(dense, tmp_path / "ours", quiet=True)
    online = run(dataclasses.replace(dense, teacher=Online(dense.teacher.run)), tmp_path / "online", quiet=True)
    # rounding errs by 1/254 of a token's largest number, some 0.3 % of a logit's spread: of no consequence for a KL
    assert abs(ours["validation"]["forward_kl"] / online["validation"]["forward_kl"] - 1) < 0.01
    assert abs(ours["loss"] / online["loss"] - 1) < 0.005


def test_fewer_entries_are_read_from_a_larger_cache(root, student):
    dataset = data.prepare(student(Top(8)).data, quiet=True)
    batch = dataset.batch(4, 0, 0)
    whole, three = (opened(root / "top", first).attach(batch).target for first in (None, 3))
    np.testing.assert_array_equal(three.id_BLS, whole.id_BLS[..., :3])
    np.testing.assert_allclose(np.exp(three.logp_BLS).sum(-1) + np.exp(three.logtail_BL), 1, atol=1e-5)
    cut(root / "top", root / "top3", first=3, quiet=True)
    stored = opened(root / "top3").attach(batch).target
    np.testing.assert_array_equal(stored.id_BLS, three.id_BLS)
    np.testing.assert_allclose(stored.logp_BLS, three.logp_BLS, atol=1 / 64)
    assert rundir.read_result(root / "top3")["bytes_per_token"] < rundir.read_result(root / "top")["bytes_per_token"]
    for directory, first in ((root / "draws", 3), (root / "top", 9)):
        with pytest.raises(InputError, match="first cannot be"):
            cut(directory, root / "no", first=first, quiet=True)


def test_some_windows_are_enough_for_a_student_that_sees_no_more(root, student, tiny, tmp_path):
    few = student(Draws(12), windows=40 * 8)
    directory = root / "few"
    cut(root / "draws", directory, windows=40 * 8, quiet=True)
    assert rundir.read_result(directory)["windows"] == {"train": 320, "validation": 64}
    shutil.copytree(root / "teacher", tmp_path / "teacher")
    caching.build(few.sources["cache"], tmp_path / "built", quiet=True)
    a, b = (opened(d).store.read(np.arange(384)) for d in (directory, tmp_path / "built"))
    for name in a:
        assert (a[name] == b[name]).mean() > 0.9999  # batches of other rows may round a logit otherwise
    again = dataclasses.replace(student(Draws(12)), teacher=Cached(str(directory)))
    assert run(again, root / "few-student", quiet=True)["loss"] > 0
    with pytest.raises(InputError, match="holds no targets"):
        run(dataclasses.replace(again, seed=1), root / "other-order", quiet=True)


def test_a_sweep_trains_the_teacher_once_builds_each_cache_once_and_then_the_students(student, tmp_path, tiny):
    points = {"a": student(Draws(12)), "b": dataclasses.replace(student(Draws(12)), seed=1), "c": student(Top(8))}
    planned = sweep.plan(points, tmp_path)
    assert [point.name for point in planned][:1] == ["a-cache-teacher"]
    assert {point.name: point.needs for point in planned} == {
        "a-cache-teacher": (), "a-cache": ("a-cache-teacher",), "c-cache": ("a-cache-teacher",),
        "a": ("a-cache",), "b": ("a-cache",), "c": ("c-cache",),
    }  # fmt: skip
    table = sweep.sweep(points, tmp_path / "sweep", experiment_file=tiny, quiet=True)
    assert table.read_text().count("finished") == 4  # the caches are no runs
    assert json.loads((tmp_path / "sweep" / "b" / "result.json").read_text())["cache"] == "a-cache"


def test_dense_losses_and_hidden_states_are_refused_in_words_with_a_cache(student, root):
    states = {"states": Term(Layers(CosineDistance(), pairs=((0, 1),)))}
    with pytest.raises(InputError, match="looks at layer 1 of the teacher, and a cache holds none"):
        dataclasses.replace(student(Draws(12)), objective=states)
    dense = dataclasses.replace(student(Draws(12)), objective={"kl": Term(ForwardKL())})
    with pytest.raises(InputError, match="whole distribution"):
        run(dense, root / "dense", quiet=True)
