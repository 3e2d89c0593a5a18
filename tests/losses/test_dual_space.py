"""Dual-space distillation against its definition in float64, and who learns from which part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.dual_space import DualSpace, Side

B, L, M, D, C = 3, 7, 5, 6, 8
VOCABULARIES = 11, 13


def side(seed, length, width, vocab_size):
    rng = np.random.default_rng(seed)
    h_BLD, w_VD = rng.normal(size=(B, length, width)), rng.normal(size=(vocab_size + 3, width))
    head = Head(jnp.float32(h_BLD), jnp.float32(w_VD), scale=0.5, vocab_size=vocab_size)
    index_BLAD = jnp.float32(3 * rng.normal(size=(B, length, 2, width)))
    weight_BL = rng.choice([0.0, 1.0, 2.0], size=(B, length)).astype(np.float32)
    weight_BL[2] = 0  # a row of padding
    return Side(head, index_BLAD, jnp.int32(rng.integers(vocab_size, size=(B, length))), jnp.asarray(weight_BL))


@pytest.fixture(scope="module")
def case():
    """(projections, student, teacher); the student has the labels it is most likely to be right about."""
    own, other = side(0, L, D, VOCABULARIES[0]), side(1, M, C, VOCABULARIES[1])
    projections = DualSpace().init(jax.random.key(0, impl="rbg"), D, C)
    z_BLV = definition(projections, own, other)["z_ts"]
    right_BL = np.random.default_rng(2).random((B, L)) < 0.5
    return projections, own._replace(label_BL=jnp.int32(np.where(right_BL, z_BLV.argmax(-1), own.label_BL))), other


def definition(projections, own, other):
    f = lambda x: np.asarray(x, np.float64)  # noqa: E731
    query, to_teacher, to_student = (f(projections[n]) for n in ("query_ADAC", "to_teacher_DC", "to_student_CD"))
    values = {"value": np.zeros((B, L)), "z_ts": np.zeros((B, L, VOCABULARIES[0])), "top": np.zeros((B, L))}

    def logits(h, head):
        return 0.5 * h @ f(head.w_VD)[: head.vocab_size].T

    def unit(x, counts):
        return x / np.sqrt((x[counts] ** 2).mean()) if counts.any() else x

    for row in range(B):
        here, there = f(own.weight_BL[row]) > 0, f(other.weight_BL[row]) > 0
        if not here.any() or not there.any():
            continue
        key, e = unit(f(other.index_BLAD[row]), there), f(own.index_BLAD[row])
        score = np.einsum("lad,adec,mec->lm", e, query, key) / np.sqrt(2 * C)
        reading = special.softmax(np.where(there, score, -np.inf), axis=1)
        v = unit(f(other.head.h_BLD[row]), there) + unit(f(other.index_BLAD[row][:, 1]), there)
        log_ts = special.log_softmax(logits(reading @ v @ to_student, own.head), axis=-1)
        log_q = special.log_softmax(logits(f(own.head.h_BLD[row]), own.head), axis=-1)
        back = special.softmax(np.where(here[:, None], score, -np.inf), axis=0).T @ f(own.head.h_BLD[row]) @ to_teacher
        log_st = special.log_softmax(logits(back, other.head), axis=-1)
        log_p = special.log_softmax(logits(f(other.head.h_BLD[row]), other.head), axis=-1)
        back_M = (np.exp(log_p) * (log_p - log_st)).sum(-1)
        top = log_ts.argmax(-1) == np.asarray(own.label_BL[row])
        near = (np.exp(log_ts) * (log_ts - log_q)).sum(-1)
        value = -np.take_along_axis(log_ts, np.asarray(own.label_BL[row])[:, None], 1)[:, 0] + top * near
        shared = (f(other.weight_BL[row]) * back_M).sum() / f(own.weight_BL[row]).sum()
        values["value"][row] = np.where(here, value + shared, 0)
        values["z_ts"][row], values["top"][row] = log_ts, top
    return values


def test_it_is_its_definition(case):
    expected = definition(*case)
    counts_BL = np.asarray(case[1].weight_BL) > 0
    assert 2 < expected["top"][counts_BL].sum() < counts_BL.sum() - 2
    np.testing.assert_allclose(jax.jit(DualSpace())(*case), expected["value"], rtol=2e-5, atol=1e-5)


def test_the_student_learns_from_its_own_logits_and_from_the_way_back_and_the_projections_from_the_rest(case):
    projections, own, other = case
    found = definition(*case)

    def total(projections, head):
        return jnp.sum(own.weight_BL * DualSpace()(projections, own._replace(head=head), other))

    moved, head = jax.jit(jax.grad(total, argnums=(0, 1)))(projections, own.head)
    assert all(np.abs(x).max() > 1e-3 for x in moved.values()) and np.all(np.isfinite(head.h_BLD))

    def near(w_VD):  # the student's output layer sees nothing but the KL to a target that is data
        log_q_BLV = jax.nn.log_softmax(dataclasses.replace(own.head, w_VD=w_VD).logits()[..., : VOCABULARIES[0]])
        z_BLV = jnp.float32(found["z_ts"])
        kl_BL = jnp.sum(jnp.exp(z_BLV) * (z_BLV - log_q_BLV), axis=-1)
        return jnp.sum(own.weight_BL * found["top"].astype(np.float32) * kl_BL)

    np.testing.assert_allclose(head.w_VD, jax.grad(near)(own.head.w_VD), rtol=1e-3, atol=1e-5)


def test_without_a_teacher_of_another_tokenizer_it_is_refused(case):
    with pytest.raises(InputError, match=r"set experiment\.teacher to Across"):
        DualSpace()(case[0], case[1], None)
