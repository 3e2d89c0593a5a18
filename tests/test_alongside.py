"""A teacher with another tokenizer, at the places where it has read what the student has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill import align, data
from jaxdistill.across import Chunking, Marks
from jaxdistill.alongside import hear, in_other_ids
from jaxdistill.data import pairs
from jaxdistill.head import Head
from jaxdistill.losses import methods
from jaxdistill.losses.hidden import Layers
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.paired import Gold, PairedSortedL1
from jaxdistill.losses.states import ChannelSquare
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.optim import AdamW
from jaxdistill.step import init_state, make_step
from jaxdistill.teacher import TEACHER

WORDS = data.SentencePiece(400, characters=200_000)
LENGTH, SIZE = 48, 4
U = 2.0**-24


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
    models = [Transformer(Config(each.vocab_size, 2, 16, 2, 8, 24)) for each in (other, dataset.tokenizer)]
    return batch, marks, models


@pytest.fixture(scope="module")
def same(text):
    """The same with one tokenizer on both sides, one model, and windows of one length."""
    tokens = data.Tokens(text, WORDS, LENGTH)
    dataset = data.prepare(tokens, quiet=True)
    batch = pairs.pair(tokens, dataset, dataset.tokenizer, quiet=True, length=LENGTH).batch(SIZE, 0, 0)
    spelt = table(dataset.tokenizer)
    marks = Marks.of(align.Spelling.of(*spelt), align.nearest(*spelt, *spelt))
    model = Transformer(Config(dataset.vocab_size, 2, 16, 2, 8, 24))
    return batch, (marks, marks), [model, model]


def hearing(marks):
    def across(head, states, embed_VD, batch):
        return hear(head, states, embed_VD, batch, chunking=Chunking(), teacher=marks[0], student=marks[1])

    return across


OBJECTIVE = {"hidden": Term(Layers(ChannelSquare(), ((-1, -1), (0, 0)))), **methods.mined()}
PAIRED = {f"uld_{at}": Term(PairedSortedL1(at)) for at in ("single", "begin", "row")} | {"gold": Term(Gold(0.3))}


def take_step(case, names=(*OBJECTIVE, *PAIRED), seeds=(0, 1), accumulate=1):
    """(metrics, parameters before, after, (logits, states by layer) of teacher and student) of one step."""
    batch, marks, models = case
    objective = {name: (OBJECTIVE | PAIRED)[name] for name in names}
    optim = AdamW(eps=0.1, weight_decay=0.0)
    step = make_step(
        models[1],
        optim,
        Objective.of(objective),
        teachers={TEACHER: models[0]},
        across=hearing(marks),
        marks=marks[1],
        accumulate=accumulate,
    )
    rates = {"learning_rate": np.float32(0.01), "decay": np.float32(0)}
    coef = {name: np.float32(term.at(0, 1)) for name, term in objective.items()}

    def run(seeds):
        teacher = models[0].init(jax.random.key(seeds[0], impl="rbg"))
        state = init_state(models[1], optim, jax.random.key(seeds[1], impl="rbg"))
        after, values = step(state, {TEACHER: teacher}, batch, rates, coef)
        sides = zip(models, (teacher, state.params), (batch.beside.batch, batch), strict=True)
        return values, state.params, after.params, [read(*side) for side in sides]

    return jax.jit(run)(np.array(seeds))


def read(model, params, batch):
    h_BLD, states = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL, keep=(-1, 0))
    return model.head(params, h_BLD).logits()[..., : model.config.vocab_size], states


@pytest.fixture(scope="module")
def taken(case):
    return take_step(case)


def test_states_at_the_ends_of_chunks_are_compared_as_a_walk_along_the_rows_finds_them(case, taken):
    batch, (values, _, _, ((_, there), (_, here))) = case[0], taken
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


def test_micro_batches_change_neither_the_terms_nor_the_update(case, taken):
    (whole, before, after, _), (parts, _, other, _) = taken, take_step(case, accumulate=2)
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-4)
    for x, y, z in zip(*map(jax.tree.leaves, (after, other, before)), strict=True):
        assert np.linalg.norm(x - y) <= 1e-3 * np.linalg.norm(x - z)


def test_one_model_with_one_tokenizer_has_its_own_states_and_distributions(same):
    values, _, _, ((z_BLV, _), _) = take_step(same, ("hidden", "kl", *PAIRED), seeds=(0, 0))
    assert values["hidden"] == 0 and all(values[name] < 1e-6 for name in PAIRED)
    # all tokens are paired but those that open a document; an id that spells nothing has no match, and so no part in p
    batch, (marks, _), _ = same
    unmatched = np.flatnonzero(np.asarray(marks.match_V) < 0)
    assert [*unmatched] == [0] and np.array_equal(marks.match_V[1:], np.arange(1, z_BLV.shape[-1]))
    q_BLV = np.exp(np.float64(z_BLV) / 2)
    left_BL = 1 - q_BLV[..., 0] / q_BLV.sum(-1)
    np.testing.assert_allclose(values["kl"], np.average(-4 * np.log(left_BL), weights=batch.weight_BL), rtol=1e-3)


def test_mined_is_kl_in_the_nearest_ids_where_both_have_one_token_and_cross_entropy_elsewhere(case, taken):
    batch, marks, _ = case
    values, _, _, ((z_BTV, _), (z_BLV, _)) = taken
    z_BTV, z_BLV = np.float64(z_BTV), np.float64(z_BLV)
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
    others = sum(values[name] for name in ("hidden", *PAIRED))
    np.testing.assert_allclose((values["loss"] - others) * batch.weight_BL.sum(), kl + ce, rtol=1e-5)


def test_two_vocabularies_are_compared_at_the_places_that_a_walk_along_the_rows_finds(case, taken):
    batch, marks, _ = case
    values, _, _, ((z_BTV, _), (z_BLV, _)) = taken
    chunks, own, totals = batch.beside.chunks, batch.beside.batch, dict.fromkeys(PAIRED, 0.0)

    def distance(x, y):
        longer = np.zeros((2, max(len(x), len(y))))
        longer[0, : len(x)], longer[1, : len(y)] = -np.sort(-x), -np.sort(-y)
        return np.abs(longer[0] - longer[1]).sum()

    match_V = marks[1].match_V
    has_V, is_taken_V = match_V >= 0, np.isin(np.arange(z_BTV.shape[-1]), match_V)
    for row in range(SIZE):
        p_LV, q_LV = (special.softmax(np.float64(z[row]), axis=-1) for z in (z_BTV, z_BLV))
        for place in range(min(len(p_LV), len(q_LV))):
            if own.weight_BL[row, place] and batch.weight_BL[row, place]:
                totals["uld_row"] += distance(q_LV[place], p_LV[place])
        for chunk in range(chunks.is_real_BC.shape[1]):
            t, s = (np.flatnonzero(side[row] == chunk) for side in (chunks.teacher_BL, chunks.student_BL))
            if not len(t) or not own.weight_BL[row][t].all() or not batch.weight_BL[row][s].all():
                continue
            p, q = p_LV[t[0]], q_LV[s[0]]
            totals["uld_begin"] += distance(q, p)
            totals["uld_single"] += distance(q, p) if len(t) == len(s) == 1 else 0
            p = p * np.prod([p_LV[n, own.label_BL[row, n]] for n in t[1:]])
            q = q * np.prod([q_LV[n, batch.label_BL[row, n]] for n in s[1:]])
            same = p[match_V[has_V]]
            mixed = 0.3 * same + 0.7 * q[has_V]
            by_name = (0.3 * same * np.log(same / mixed) + 0.7 * q[has_V] * np.log(q[has_V] / mixed)).sum()
            share = is_taken_V.mean()
            totals["gold"] += share * by_name + (1 - share) * distance(q[~has_V], p[~is_taken_V])
    for name, total in totals.items():
        np.testing.assert_allclose(values[name], total / batch.weight_BL.sum(), rtol=2e-5)


def test_a_head_in_other_ids_has_their_logits_and_none_for_what_has_no_match():
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 2, 3), (8, 3), (8,))]
    head = Head(*arrays, scale=0.5, softcap=4.0, vocab_size=6)
    match_V = np.array([5, -1, 0, 0])
    got, plain = in_other_ids(head, match_V).logits(), head.logits()
    np.testing.assert_allclose(got[..., [0, 2, 3]], plain[..., [5, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(got[..., 1], -4.0)  # as low as a capped logit goes
    assert (in_other_ids(dataclasses.replace(head, softcap=None), match_V).logits()[..., 1] < -1e29).all()
