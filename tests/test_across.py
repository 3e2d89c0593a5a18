"""A teacher with a tokenizer of its own: what it says of chunks, and what a step makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import align, checkpoint, data, frozen, metrics
from jaxdistill.across import Chunking, Marks, answers, says
from jaxdistill.data import pairs
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.losses.chunks import ChunkKL, ChunkTotalVariation
from jaxdistill.losses.combiners import GradNorm
from jaxdistill.losses.dual_space import DualSpace
from jaxdistill.losses.objective import Term
from jaxdistill.models import ladder
from jaxdistill.models.transformer import Transformer
from jaxdistill.run import run
from jaxdistill.teacher import Across

WORDS = data.SentencePiece(400, characters=200_000)
LENGTH, SIZE = 48, 4
U = 2.0**-24


@pytest.fixture(scope="module")
def case(text):
    """(batch, marks of teacher and student, model and parameters of both): SentencePiece beside bytes."""
    tokens = data.Tokens(text, data.Bytes(), LENGTH)
    dataset = data.prepare(tokens, quiet=True)
    other = WORDS.build(text, text.fingerprint(), None, True)
    batch = pairs.pair(tokens, dataset, other, quiet=True).batch(SIZE, 0, 0)
    marks = tuple(
        Marks.of(align.Spelling.of(each.token_bytes.of_id, {"eos": each.eos_id})) for each in (other, dataset.tokenizer)
    )
    models = [Transformer(ladder.laptop(16, each.vocab_size, vocab_multiple=32)) for each in (other, dataset.tokenizer)]
    params = [model.init(jax.random.key(n, impl="rbg")) for n, model in enumerate(models)]
    return batch, marks, models, params


def head_of(model, params, batch):
    h_BLD, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
    return model.head(params, h_BLD)


def by_definition(head, batch, marks, chunk_BL, size, debias):
    """Chunk log-probabilities from whole logits."""
    logp_BLV = jax.nn.log_softmax(head.logits())
    logp_BL = jnp.take_along_axis(logp_BLV, batch.label_BL[..., None], axis=-1)[..., 0] * (batch.weight_BL > 0)
    boundary_BL = align.boundary_logp(
        head.logits()[:, 1:], batch.label_BL[:, :-1], marks.is_boundary_V, marks.is_special_V
    )
    return align.chunk_logp(logp_BL, chunk_BL, size, jnp.pad(boundary_BL, ((0, 0), (0, 1))), debias)


@pytest.mark.parametrize("debias", ["none", "outcome", "both"])
@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_teacher_and_student_say_what_their_whole_logits_say(case, debias, gamma):
    batch, marks, models, params = case
    heads = [head_of(m, p, b) for m, p, b in zip(models, params, (batch.beside.batch, batch), strict=True)]
    target = says(heads[0], batch, Chunking("bytes", debias, gamma), *marks)
    size = target.is_real_BC.shape[1]
    assert np.asarray(target.is_real_BC).sum() > (SIZE if gamma else SIZE * 10)
    if not gamma:
        expected_BC = by_definition(
            heads[0], batch.beside.batch, marks[0], batch.beside.chunks.teacher_BL, size, debias
        )
        np.testing.assert_allclose(
            np.where(target.is_real_BC, target.logp_BC, 0), np.where(target.is_real_BC, expected_BC, 0), rtol=1e-5
        )
    value_BL = answers(
        {"tv": ChunkTotalVariation(np.inf)}, heads[1], target, batch.label_BL, batch.weight_BL, marks=marks[1]
    )["tv"]
    own_BC = by_definition(heads[1], batch, marks[1], target.chunk_BL, size, debias)
    expected = np.abs(np.where(target.is_real_BC, target.logp_BC - own_BC, 0)).sum(1)
    np.testing.assert_allclose(np.asarray(value_BL).sum(1), expected, rtol=1e-4, atol=1e-5)
    last_BC = np.asarray(align.last_token(target.chunk_BL, size))
    assert set(zip(*np.nonzero(np.asarray(value_BL)), strict=True)) <= {
        (row, last_BC[row, c]) for row, c in zip(*np.nonzero(np.asarray(target.is_real_BC)), strict=True)
    }


@pytest.mark.parametrize("debias", ["none", "outcome", "both"])
def test_one_model_with_one_tokenizer_costs_nothing_and_moves_nothing(text, debias):
    tokens = data.Tokens(text, WORDS, LENGTH)
    dataset = data.prepare(tokens, quiet=True)
    batch = pairs.pair(tokens, dataset, dataset.tokenizer, quiet=True, length=LENGTH).batch(SIZE, 0, 0)
    marks = Marks.of(align.Spelling.of(dataset.tokenizer.token_bytes.of_id, {"eos": dataset.tokenizer.eos_id}))
    model = Transformer(ladder.laptop(16, dataset.vocab_size, vocab_multiple=32))
    params = model.init(jax.random.key(0, impl="rbg"))
    target = says(head_of(model, params, batch.beside.batch), batch, Chunking("bytes", debias, 0.0), marks, marks)
    assert np.asarray(target.is_real_BC).any()

    def cost(params):
        head = head_of(model, params, batch)
        return answers({"alm": ChunkKL()}, head, target, batch.label_BL, batch.weight_BL, marks=marks)["alm"].sum()

    value, gradient = jax.value_and_grad(cost)(params)
    assert value == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_what_follows_the_last_label_of_a_row_is_not_known(case):
    batch, marks, models, params = case
    head = head_of(models[0], params[0], batch.beside.batch)
    plain, corrected = (says(head, batch, Chunking("bytes", debias, 0.0), *marks) for debias in ("none", "outcome"))
    for row in range(SIZE):
        lost = np.flatnonzero(np.asarray(plain.is_real_BC[row]) & ~np.asarray(corrected.is_real_BC[row]))
        ends_BL = batch.beside.chunks.teacher_BL[row, -1], batch.beside.chunks.student_BL[row, -1]
        assert set(lost) <= set(ends_BL)


def experiments(text, tiny):
    plain = dataclasses.replace(
        load_module(tiny).supervised(),
        model=ladder.laptop(16, 400, vocab_multiple=1),
        data=data.Tokens(text, WORDS, 32),
    )
    teacher = dataclasses.replace(plain, steps=20)
    student = dataclasses.replace(
        plain,
        model=ladder.laptop(16, 257, vocab_multiple=1),
        data=data.Tokens(text, data.Bytes(), 96, validation_windows=32),
        objective={"alm": Term(ChunkKL()), "dskd": Term(DualSpace(), 0.1)},
        teacher=Across(teacher, match="same"),
        combine=GradNorm(),
        steps=20,
    )
    return teacher, student


def test_a_run_learns_from_a_teacher_of_another_tokenizer_in_micro_batches_too(text, tiny, tmp_path):
    teacher, student = experiments(text, tiny)
    run(teacher, tmp_path / "teacher", quiet=True)
    whole = run(student, tmp_path / "student", quiet=True)
    parts = run(dataclasses.replace(student, accumulate=2), tmp_path / "accumulated", quiet=True)
    assert whole["teacher"] == "teacher"
    assert np.isclose(whole["loss"], parts["loss"], rtol=1e-4)
    rows = [row for row in metrics.read(tmp_path / "student" / "metrics.jsonl") if "alm" in row]
    assert all(rows[-1][name] < 0.9 * rows[0][name] for name in student.objective)
    assert {f"weight/{name}" for name in student.objective} <= rows[0].keys()
    # the projections are kept with the run, and are no part of its model
    begun = DualSpace().init(jax.random.key(0), student.model.width, teacher.model.width)
    where = tmp_path / "student" / "checkpoints", student.steps
    like = checkpoint.abstract_like(begun, jax.tree.map(lambda x: x.sharding, begun))
    kept = checkpoint.load_parts(*where, {"params": {"extras": {"dskd": like}}})["params"]
    assert kept["extras"]["dskd"].keys() == begun.keys()
    _, params = frozen.load(tmp_path / "student", "float32", None, student.mesh.build())
    assert "extras" not in params


def test_chunks_without_a_teacher_that_speaks_of_them_are_refused(text, tiny, tmp_path):
    _, student = experiments(text, tiny)
    with pytest.raises(InputError, match="alm compares chunks, of which no teacher speaks"):
        student = dataclasses.replace(student, objective={"alm": student.objective["alm"]})
        run(dataclasses.replace(student, teacher=None), tmp_path / "student", quiet=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": "words"}, "at is 'words'; chunks can end at 'bytes' or at 'spaces'"),
        ({"debias": "all"}, "debias is 'all'; it must be"),
        ({"gamma": -1.0}, "gamma is -1.0; it is a probability"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Chunking(**change)
