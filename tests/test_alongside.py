"""A teacher with another tokenizer, at the places where it has read what the student has."""

import dataclasses
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import align, data, metrics
from jaxdistill.across import Chunking, Marks
from jaxdistill.alongside import hear, in_other_ids
from jaxdistill.data import pairs
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.head import Head
from jaxdistill.losses import methods
from jaxdistill.losses.hidden import Layers
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.states import ChannelSquare
from jaxdistill.models import ladder
from jaxdistill.models.transformer import Transformer
from jaxdistill.optim import AdamW
from jaxdistill.run import run
from jaxdistill.step import init_state, make_step
from jaxdistill.teacher import TEACHER, Across

WORDS = data.SentencePiece(400, characters=200_000)
LENGTH, SIZE = 48, 4
U = 2.0**-24


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Sixty topics of Python's language reference."""
    root = tmp_path_factory.mktemp("text")
    for name, topic in sorted(topics.items())[:60]:
        (root / f"{name.replace('/', '-')}.txt").write_text(topic)
    return data.Files(str(root), validation=0.1)


def table(tokenizer):
    return tokenizer.token_bytes.of_id, {"eos": tokenizer.eos_id}


@pytest.fixture(scope="module")
def case(text):
    """(batch, marks of teacher and student, their models): SentencePiece beside bytes, with the nearest ids."""
    tokens = data.Tokens(text, data.Bytes(), LENGTH)
    dataset = data.prepare(tokens, quiet=True)
    other = WORDS.build(text, text.fingerprint(), None, True)
    batch = pairs.pair(tokens, dataset, other, quiet=True).batch(SIZE, 0, 0)
    tables = [table(tokenizer) for tokenizer in (other, dataset.tokenizer)]
    match_V = align.nearest(*tables[1], *tables[0])
    marks = Marks.of(align.Spelling.of(*tables[0])), Marks.of(align.Spelling.of(*tables[1]), match_V)
    models = [Transformer(ladder.laptop(16, each.vocab_size, vocab_multiple=32)) for each in (other, dataset.tokenizer)]
    return batch, marks, models


@pytest.fixture(scope="module")
def same(text):
    """The same with one tokenizer on both sides, one model, and windows of one length."""
    tokens = data.Tokens(text, WORDS, LENGTH)
    dataset = data.prepare(tokens, quiet=True)
    batch = pairs.pair(tokens, dataset, dataset.tokenizer, quiet=True, length=LENGTH).batch(SIZE, 0, 0)
    spelt = table(dataset.tokenizer)
    marks = Marks.of(align.Spelling.of(*spelt), align.nearest(*spelt, *spelt))
    model = Transformer(ladder.laptop(16, dataset.vocab_size, vocab_multiple=32))
    return batch, (marks, marks), [model, model]


def hearing(marks):
    def across(head, states, batch):
        return hear(head, states, batch, chunking=Chunking(), teacher=marks[0], student=marks[1])

    return across


def take_step(case, objective, seeds=(0, 1), **options):
    """(metrics, state before, state after) of one step of a student whose parameters are drawn from seeds[1]."""
    batch, marks, models = case
    optim = AdamW(eps=0.1, weight_decay=0.0)
    teacher, student = (model.init(jax.random.key(s, impl="rbg")) for model, s in zip(models, seeds, strict=True))
    step = make_step(
        models[1], optim, Objective.of(objective), teachers={TEACHER: models[0]}, across=hearing(marks), **options
    )
    state = init_state(models[1], optim, jax.random.key(seeds[1], impl="rbg"))
    rates = {"learning_rate": np.float32(0.01), "decay": np.float32(0)}
    coef = {name: np.float32(term.at(0, 1)) for name, term in objective.items()}
    after, values = jax.jit(step)(state, {TEACHER: teacher}, batch, rates, coef)
    return values, state, after, {TEACHER: teacher, "student": student}


def read(model, params, batch, layers=(-1,)):
    h_BLD, states = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL, keep=layers)
    return model.head(params, h_BLD), states


HIDDEN = {"hidden": Term(Layers(ChannelSquare(), ((-1, -1), (0, 0))))}


def test_states_at_the_ends_of_chunks_are_compared_as_a_walk_along_the_rows_finds_them(case):
    batch, _, models = case
    values, *_, params = take_step(case, HIDDEN)
    _, there = read(models[0], params[TEACHER], batch.beside.batch, (-1, 0))
    _, here = read(models[1], params["student"], batch, (-1, 0))
    total, chunks = 0.0, batch.beside.chunks
    for row in range(SIZE):
        pairs_of_row = []
        for chunk in range(chunks.is_real_BC.shape[1]):
            t, s = (np.flatnonzero(side[row] == chunk) for side in (chunks.teacher_BL, chunks.student_BL))
            if not len(t) or t[-1] + 1 >= chunks.teacher_BL.shape[1] or s[-1] + 1 >= LENGTH:
                continue
            scored = batch.beside.batch.weight_BL[row][t].all() and batch.weight_BL[row][s].all()
            if scored and batch.weight_BL[row, s[-1] + 1]:
                pairs_of_row.append((t[-1] + 1, s[-1] + 1))
        assert len(pairs_of_row) > 5
        for layer in (-1, 0):
            x, y = (
                np.float64(np.asarray(states[layer][row]))[[p[side] for p in pairs_of_row]]
                for side, states in ((1, here), (0, there))
            )
            total += ((x - y) ** 2 / (y**2).mean(0)).mean(-1).sum() / 2
    np.testing.assert_allclose(values["hidden"], total / batch.weight_BL.sum(), rtol=1e-5)


def test_micro_batches_change_neither_the_terms_nor_the_update(case):
    objective = HIDDEN | methods.mined()
    (whole, before, after, _), (parts, _, other, _) = (take_step(case, objective, accumulate=n) for n in (1, 2))
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-4)
    for x, y, z in zip(*map(jax.tree.leaves, (after.params, other.params, before.params)), strict=True):
        assert np.linalg.norm(x - y) <= 1e-3 * np.linalg.norm(x - z)


def test_one_model_with_one_tokenizer_has_its_own_states_and_distributions(same):
    objective = HIDDEN | methods.mined()
    values, *_ = take_step(same, {name: objective[name] for name in ("hidden", "kl")}, seeds=(0, 0))
    batch = same[0]
    assert values["hidden"] == 0 and abs(values["kl"]) < 1e-6
    assert values["grad_norm"] < 1e-5
    # all tokens are paired but those that open a document
    target, further = hear_same(same)
    np.testing.assert_array_equal(further.signals["paired"], batch.weight_BL > 0)
    np.testing.assert_allclose(target.head.logits()[0, 3], hear_same.head.logits()[0, 3], rtol=1e-5, atol=1e-5)


def hear_same(same):
    batch, marks, models = same
    params = models[0].init(jax.random.key(0, impl="rbg"))
    hear_same.head, states = read(models[0], params, batch.beside.batch)
    return hearing(marks)(hear_same.head, states, batch)


def test_mined_is_kl_in_the_nearest_ids_where_both_have_one_token_and_cross_entropy_elsewhere(case):
    batch, marks, models = case
    values, *_, params = take_step(case, methods.mined())
    teacher, _ = read(models[0], params[TEACHER], batch.beside.batch)
    student, _ = read(models[1], params["student"], batch)
    z_BTV, z_BLV = (np.float64(h.logits()[..., : h.vocab_size]) for h in (teacher, student))
    chunks, kl, ce, number = batch.beside.chunks, 0.0, 0.0, 0

    def log_softmax(z):
        return z - z.max() - np.log(np.exp(z - z.max()).sum())

    for row in range(SIZE):
        for label in range(LENGTH):
            if not (weight := batch.weight_BL[row, label]):
                continue
            chunk = chunks.student_BL[row, label]
            there = np.flatnonzero(chunks.teacher_BL[row] == chunk)
            alone = chunk >= 0 and len(there) == 1 and (chunks.student_BL[row] == chunk).sum() == 1
            if alone and batch.beside.batch.weight_BL[row, there[0]]:
                log_p, log_q = (log_softmax(z / 2) for z in (z_BTV[row, there[0]][marks[1].match_V], z_BLV[row, label]))
                kl, number = kl + 4 * (np.exp(log_p) * (log_p - log_q)).sum(), number + 1
            else:
                ce -= weight * log_softmax(z_BLV[row, label])[batch.label_BL[row, label]]
    assert 10 < number < batch.weight_BL.sum() - 10
    np.testing.assert_allclose(values["loss"] * batch.weight_BL.sum(), kl + ce, rtol=1e-5)


def test_a_head_in_other_ids_has_their_logits_and_none_for_what_has_no_match():
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 2, 3), (8, 3), (8,))]
    head = Head(*arrays, scale=0.5, softcap=4.0, vocab_size=6)
    match_V = np.array([5, -1, 0, 0])
    got, plain = in_other_ids(head, match_V).logits(), head.logits()
    np.testing.assert_allclose(got[..., [0, 2, 3]], plain[..., [5, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(got[..., 1], -4.0)  # as low as a capped logit goes
    assert (in_other_ids(dataclasses.replace(head, softcap=None), match_V).logits()[..., 1] < -1e29).all()


def test_a_run_learns_from_states_and_nearest_ids(text, tiny, tmp_path):
    plain = dataclasses.replace(
        load_module(tiny).supervised(),
        model=ladder.laptop(16, 400, vocab_multiple=1),
        data=data.Tokens(text, WORDS, 32),
        steps=20,
    )
    student = dataclasses.replace(
        plain,
        model=ladder.laptop(16, 257, vocab_multiple=1),
        data=data.Tokens(text, data.Bytes(), 96, validation_windows=32),
        objective=methods.mined() | HIDDEN,
        teacher=Across(plain, match="nearest"),
    )
    run(plain, tmp_path / "teacher", quiet=True)
    run(student, tmp_path / "student", quiet=True)
    rows = [row for row in metrics.read(tmp_path / "student" / "metrics.jsonl") if "kl" in row]
    assert all(rows[-1][name] < 0.9 * rows[0][name] for name in ("hidden", "ce_unpaired"))
    with pytest.raises(InputError, match="ForwardKL needs a teacher's whole distribution, not Labels"):
        refused = dataclasses.replace(student, teacher=Across(plain))
        run(refused, tmp_path / "refused", quiet=True)
