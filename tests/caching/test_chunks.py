"""A cache of what a teacher with another tokenizer says of chunks: a student learns from it as from the teacher."""

import dataclasses
import shutil
from pydoc_data.topics import topics

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxdistill import caching, data, metrics, rundir
from jaxdistill.across import Chunking
from jaxdistill.align import NO_CHUNK
from jaxdistill.cache.chunks import ChunkLevels
from jaxdistill.cache.columns import to_columns
from jaxdistill.cache.reader import Cache
from jaxdistill.cache.samplers import Draws
from jaxdistill.cache.store import Store
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.losses.chunks import ChunkKL
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.losses.targets import Chunked
from jaxdistill.models import ladder
from jaxdistill.run import run
from jaxdistill.teacher import Across, Cached

WORDS = data.SentencePiece(400, characters=100_000)
RESOLUTION = 1 / 64


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny):
    """A model of pieces of text: forty topics of Python's language reference."""
    root = tmp_path_factory.mktemp("text")
    for name, topic in sorted(topics.items())[:40]:
        (root / f"{name.replace('/', '-')}.txt").write_text(topic)
    return dataclasses.replace(
        load_module(tiny).supervised(),
        model=ladder.laptop(16, 400, vocab_multiple=1),
        data=data.Tokens(data.Files(str(root), validation=0.1), WORDS, 32, validation_windows=32),
        steps=12,
    )


@pytest.fixture(scope="module")
def student(teacher):
    """A student of bytes that reads a cache."""
    return dataclasses.replace(
        teacher,
        model=ladder.laptop(16, 257, vocab_multiple=1),
        data=dataclasses.replace(teacher.data, tokenizer=data.Bytes(), length=96),
        objective={"alm": Term(ChunkKL()), "ce": Term(CrossEntropy(), 0.1)},
        teacher=Cached(teacher, Chunking()),
        log_every=1,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory, teacher, student):
    """A directory with the teacher and the cache, whose building was broken off."""
    root = tmp_path_factory.mktemp("chunks")
    run(teacher, root / "teacher", quiet=True)
    write, calls = Store.write, []

    def fail(store, number, *arrays, **facts):
        calls.append(number)
        if number == 1:
            raise KeyboardInterrupt
        write(store, number, *arrays, **facts)

    recipe = student.sources["cache"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "write", fail)
        caching.build(recipe, root / "cache", quiet=True)
    assert not rundir.is_finished(root / "cache") and 0 < caching.progress(root / "cache") < 1
    caching.build(recipe, root / "cache", quiet=True)
    return root


def test_a_continued_build_wrote_every_shard_once_and_the_teacher_stands_by_all_of_it(root):
    found = caching.verify(root / "cache", windows=8, quiet=True)
    assert found["shards"] >= 2 and found["overlap"] == 1.0
    assert rundir.read_result(root / "cache")["windows"]["validation"] == 0


def test_a_student_of_the_cache_learns_what_one_of_the_teacher_does(root, student):
    cached = run(student, root / "student", quiet=True)
    online = run(
        dataclasses.replace(student, teacher=Across(student.teacher.run, Chunking())), root / "online", quiet=True
    )
    rows = [metrics.read(root / name / "metrics.jsonl") for name in ("student", "online")]
    alm = np.array([[row["alm"] for row in own if "alm" in row] for own in rows])
    assert alm.shape == (2, student.steps) and alm[1, -1] < alm[1, 0]
    # a chunk is off by at most half a level, in any direction, of some nats that teacher and student are apart
    np.testing.assert_allclose(alm[0], alm[1], rtol=2e-3)
    np.testing.assert_allclose(cached["loss"], online["loss"], rtol=2e-4)
    assert cached["cache"] == "cache" and cached["teacher"] == "teacher"


def test_it_takes_little_more_than_the_entropy_of_what_it_says(root):
    manifest = rundir.read_result(root / "cache")
    store = Cache.open(root / "cache", manifest).store
    rows = store.read(np.arange(store.rows), ["step", "level"])
    bits = 0.0
    for column in rows.values():
        _, counts = np.unique(column, return_counts=True)
        bits -= (counts * np.log2(counts / counts.sum())).sum()
    held = manifest["bytes"]["step"] + manifest["bytes"]["level"]
    assert held < 1.5 * bits / 8
    assert manifest["bytes_per_token"] < 2


def test_its_facts_are_shown_in_chunks(root):
    console = Console(record=True, width=120)
    caching.show(root / "cache", console)
    shown = console.export_text()
    assert "chunks a token" in shown and "debias='outcome'" in shown and "nats a token in chunks" in shown


def test_fewer_windows_can_be_cut_from_it(root):
    caching.cut(root / "cache", root / "few", windows=64, quiet=True)
    assert rundir.read_result(root / "few")["windows"] == {"train": 64, "validation": 0}
    with pytest.raises(InputError, match="first cannot be 3"):
        caching.cut(root / "cache", root / "no", first=3, quiet=True)


def test_what_it_does_not_hold_is_refused_before_the_student_starts(root, student, tmp_path):
    def refused(match, **changes):
        with pytest.raises(InputError, match=match):
            run(dataclasses.replace(student, **changes), tmp_path / "student", quiet=True)
        shutil.rmtree(tmp_path / "student")

    given = str(root / "cache")
    refused(
        r"keep.debias = 'outcome', and the experiment asks for 'none'", teacher=Cached(given, Chunking(debias="none"))
    )
    refused("no finished run beside", teacher=Cached(student.teacher.run, Chunking(gamma=0.5)))
    refused("made with another tokenizer", teacher=Cached(given), data=student.teacher.run.data,
            model=student.teacher.run.model)  # fmt: skip
    refused("no targets for 8 of 8 windows", teacher=Cached(given), data=dataclasses.replace(student.data, length=64))
    refused("takes a target with a whole distribution|whole distribution", teacher=Cached(given),
            objective={"kl": Term(ForwardKL())})  # fmt: skip
    recipe = dataclasses.replace(student.sources["cache"], keep=Draws(2), windows=128)
    caching.build(dataclasses.replace(recipe, data=student.teacher.run.data),
                  root / "draws", quiet=True)  # fmt: skip
    refused(r"keep = jaxdistill.cache.samplers:Draws, and the experiment asks for jaxdistill.across:Chunking",
            teacher=Cached(str(root / "draws"), Chunking()), data=student.teacher.run.data,
            model=student.teacher.run.model)  # fmt: skip


def test_chunks_come_back_as_they_were_within_half_a_level():
    generator = np.random.default_rng(0)
    B, L, C = 4, 40, 30
    chunk_BL = np.cumsum(generator.integers(0, 2, (B, L)), 1).astype(np.int32) - 1
    chunk_BL[:, generator.integers(0, L, 6)] = NO_CHUNK
    chunk_BL[3] = NO_CHUNK
    is_real_BC = (generator.random((B, C)) < 0.8) & (np.arange(C) <= chunk_BL.max(1, keepdims=True))
    logp_BC = (-generator.exponential(3, (B, C)) + 0.5).astype(np.float32)
    logp_BC[0, 0] = -1000.0
    layout = ChunkLevels(L, RESOLUTION, "both")
    packed = layout.pack(Chunked(jnp.asarray(logp_BC), jnp.asarray(is_real_BC), jnp.asarray(chunk_BL), "both"))
    back = layout.target(to_columns(packed, layout.columns), None)
    np.testing.assert_array_equal(back.chunk_BL, chunk_BL)
    np.testing.assert_array_equal(back.is_real_BC[:, :C], is_real_BC)
    assert not back.is_real_BC[:, C:].any() and back.debias == "both"
    off_BC = np.abs(back.logp_BC[:, :C] - np.minimum(logp_BC, 0))
    assert off_BC[is_real_BC].max() <= RESOLUTION / 2 + 1e-5
    for wrong in (np.nan, -np.inf, -1e5):
        packed = layout.pack(Chunked(jnp.full((1, 1), wrong), jnp.ones((1, 1), bool), jnp.zeros((1, L), int), "both"))
        assert packed["level_BL"].max() > 2**16 - 1
