"""Log-probabilities of chunks: the definition in float64, what sums keep, merging, gradients, and what is left out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.align import (
    NO_CHUNK,
    Chunks,
    align,
    boundary_logp,
    chunk_logp,
    last_token,
    locate,
    merge,
    reference,
    scored,
    shared_roles,
)
from jaxdistill.errors import InputError
from jaxdistill.losses.chunks import ChunkKL, ChunkRenyi, ChunkReverseKL, ChunkTotalVariation

U = 2.0**-24
LENGTH = 64  # of all batches of a test, so that there is one program


def chunks_of(draw, seed, length=LENGTH):
    """The chunks of a random batch, cut or padded to one length."""
    sides = draw(seed)
    shared = shared_roles(*(side.spelling for side in sides))
    cut = []
    for side in sides:
        more = max(0, length - side.tokens_BL.shape[1])
        pad = functools.partial(np.pad, pad_width=((0, 0), (0, more)))
        tokens_BL, is_real_BL = (pad(x)[:, :length] for x in (side.tokens_BL, side.is_real_BL))
        cut.append(locate(tokens_BL, is_real_BL, side.spelling, shared))
    return align(*cut)


def numbers(seed, shape):
    """(logp_BL, boundary_BL): log-probabilities of all sizes, fp32."""
    rng = np.random.default_rng(seed)
    return [-np.exp(rng.normal(0, 2, shape)).astype(np.float32) for _ in range(2)]


run = jax.jit(chunk_logp, static_argnames=("chunks", "debias"))
run_merge = jax.jit(merge, static_argnames="gamma")


@pytest.mark.parametrize("debias", ["none", "outcome", "both"])
@pytest.mark.parametrize("seed", range(10))
def test_they_are_those_of_the_definition(draw, seed, debias):
    chunks = chunks_of(draw, seed)
    logp_BL, boundary_BL = numbers(seed, chunks.student_BL.shape)
    got_BC = np.asarray(run(logp_BL, chunks.student_BL, LENGTH, boundary_BL, debias))
    for row, chunk_L in enumerate(chunks.student_BL):
        expected = reference.log_probabilities(np.float64(logp_BL[row]), chunk_L, np.float64(boundary_BL[row]), debias)
        size = np.bincount(chunk_L[chunk_L >= 0], minlength=len(expected)).max(initial=0)
        largest = np.abs(logp_BL[row]).sum() + 2 * np.abs(boundary_BL[row]).max()
        np.testing.assert_allclose(got_BC[row, : len(expected)], expected, rtol=0, atol=(size + 2) * U * largest)
        assert not got_BC[row, len(expected) :].any()
    assert got_BC.dtype == np.float32


@pytest.mark.parametrize("seed", range(5))
def test_together_they_are_the_log_probability_of_all_tokens_in_chunks(draw, seed):
    chunks = chunks_of(draw, seed)
    for chunk_BL in (chunks.teacher_BL, chunks.student_BL):
        logp_BL, boundary_BL = numbers(seed, chunk_BL.shape)
        expected_B = np.where(chunk_BL >= 0, np.float64(logp_BL), 0).sum(1)
        slack = LENGTH * U * np.abs(logp_BL).sum(1).max()
        np.testing.assert_allclose(run(logp_BL, chunk_BL, LENGTH).sum(1), expected_B, rtol=0, atol=slack)
        # S_c of one chunk is taken off again by the next, all but the last
        both_BC, last_BC = run(logp_BL, chunk_BL, LENGTH, boundary_BL, "both"), last_token(chunk_BL, LENGTH)
        end_B = np.asarray(last_BC).max(1)
        left_B = np.where(end_B >= 0, np.take_along_axis(boundary_BL, np.maximum(end_B, 0)[:, None], 1)[:, 0], 0)
        slack += LENGTH * U * 2 * np.abs(boundary_BL).sum(1).max()
        np.testing.assert_allclose(both_BC.sum(1), expected_B + left_B, rtol=0, atol=slack)


def test_the_gradient_says_how_often_each_number_counts():
    chunk_BL = np.array([[NO_CHUNK, 0, 0, NO_CHUNK, 1, 2, 2, NO_CHUNK]])
    logp_BL, boundary_BL, weight_C = np.zeros((1, 8)), np.zeros((1, 8)), np.array([1.0, 10.0, 100.0, 1000.0])
    total = lambda *x, debias: (weight_C * chunk_logp(x[0], chunk_BL, 4, x[1], debias)).sum()  # noqa: E731
    for debias, expected in (
        ("none", [0, 0, 0, 0, 0, 0, 0, 0]),
        ("outcome", [0, 0, 1, 0, 10, 0, 100, 0]),
        ("both", [0, 0, 1 - 10, 0, 10 - 100, 0, 100, 0]),
    ):
        slopes = jax.grad(functools.partial(total, debias=debias), argnums=(0, 1))(logp_BL, boundary_BL)
        assert slopes[0].tolist() == [[0, 1, 1, 0, 10, 100, 100, 0]]
        assert slopes[1].tolist() == [expected]


def test_the_last_token_of_a_chunk_is_found():
    chunk_BL = np.array([[NO_CHUNK, 0, 0, NO_CHUNK, 1, NO_CHUNK], [NO_CHUNK] * 6])
    assert last_token(chunk_BL, 3).tolist() == [[2, 4, -1], [-1, -1, -1]]


def test_a_correction_without_boundaries_and_an_unknown_one_are_refused():
    with pytest.raises(InputError, match="debias='both' needs to know where boundaries follow"):
        chunk_logp(jnp.zeros((1, 2)), np.zeros((1, 2), int), 2, debias="both")
    with pytest.raises(InputError, match="debias is 'space'; it must be 'none', 'outcome' or 'both'"):
        chunk_logp(jnp.zeros((1, 2)), np.zeros((1, 2), int), 2, debias="space")


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_a_boundary_is_as_probable_as_its_tokens_together(spread, padding):
    rng = np.random.default_rng(0)
    z_BLV = (spread * rng.normal(size=(2, 5, 33))).astype(np.float32)
    is_boundary_V, is_special_V = rng.random(33) < 0.2, np.arange(33) == 4
    tokens_BL = np.array([[4, 1, 2, 3, 4], [5, 6, 4, 7, 8]])
    expected_BL = np.log(special.softmax(np.float64(z_BLV), axis=-1)[..., is_boundary_V].sum(-1))
    padded_BLV = np.pad(z_BLV, ((0, 0), (0, 0), (0, padding)), constant_values=-1e30)
    got_BL = boundary_logp(padded_BLV, tokens_BL, is_boundary_V, is_special_V)
    slack = (2 * np.sqrt(33) + 4 * np.abs(z_BLV).max()) * U
    np.testing.assert_allclose(got_BL, np.where(tokens_BL == 4, 0, expected_BL), rtol=0, atol=slack)


def test_its_gradient_is_the_posterior_of_the_boundary_tokens_less_the_prior():
    rng = np.random.default_rng(1)
    z_BLV = (3 * rng.normal(size=(1, 2, 9))).astype(np.float32)
    inside_V, token_BL = np.arange(9) < 3, np.array([[5, 8]])
    total = lambda z_BLV: boundary_logp(z_BLV, token_BL, inside_V, np.arange(9) == 8).sum()  # noqa: E731
    q_BLV = special.softmax(np.float64(z_BLV), axis=-1)
    posterior_BLV = q_BLV * inside_V / (q_BLV * inside_V).sum(-1, keepdims=True)
    expected_BLV = np.where((token_BL == 8)[..., None], 0, posterior_BLV - q_BLV)
    np.testing.assert_allclose(jax.grad(total)(z_BLV), expected_BLV, rtol=0, atol=8 * U * (1 + np.abs(z_BLV).max()))


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_chunks_are_merged_as_defined(draw, seed, gamma):
    chunks = chunks_of(draw, seed)
    boundary_BL = np.log(np.random.default_rng(seed).uniform(1e-30, 1, chunks.teacher_BL.shape)).astype(np.float32)
    merged = run_merge(chunks, boundary_BL, gamma=gamma)
    for row, chunk_L in enumerate(chunks.teacher_BL):
        count = chunk_L.max() + 1
        follows = [float(boundary_BL[row, np.flatnonzero(chunk_L == chunk)[-1]]) for chunk in range(count)]
        group_of = np.array([*reference.groups(follows, gamma), NO_CHUNK])  # the last is what NO_CHUNK looks up
        np.testing.assert_array_equal(merged.teacher_BL[row], group_of[chunk_L])
        np.testing.assert_array_equal(merged.student_BL[row], group_of[chunks.student_BL[row]])
        assert merged.is_real_BC[row].sum() == len(set(group_of[:-1]))


def test_at_zero_nothing_is_merged_and_from_one_on_everything(draw):
    chunks = chunks_of(draw, 3)
    boundary_BL = -np.linspace(0, 300, LENGTH, dtype=np.float32)[None].repeat(len(chunks.teacher_BL), 0)
    jax.tree.map(np.testing.assert_array_equal, run_merge(chunks, boundary_BL, gamma=0.0), chunks)
    whole = run_merge(chunks, boundary_BL, gamma=1.0)
    np.testing.assert_array_equal(whole.teacher_BL, np.minimum(chunks.teacher_BL, 0))
    np.testing.assert_array_equal(whole.is_real_BC.sum(1), chunks.is_real_BC.any(1))


def test_a_group_is_worth_what_its_chunks_are(draw):
    chunks = chunks_of(draw, 4)
    logp_BL, boundary_BL = numbers(4, chunks.teacher_BL.shape)
    merged = run_merge(chunks, boundary_BL, gamma=0.1)
    parts_BC, whole_BC = (run(logp_BL, each.teacher_BL, LENGTH) for each in (chunks, merged))
    for row in range(len(logp_BL)):
        chunk_L, group_L = chunks.teacher_BL[row], np.asarray(merged.teacher_BL[row])
        pairs = set(zip(chunk_L[chunk_L >= 0].tolist(), group_L[chunk_L >= 0].tolist(), strict=True))
        assert len(pairs) == chunk_L.max() + 1  # every chunk is in one group
        expected = np.zeros(LENGTH)
        for chunk, group in pairs:
            expected[group] += float(parts_BC[row, chunk])
        slack = LENGTH * U * np.abs(logp_BL[row]).sum()
        np.testing.assert_allclose(whole_BC[row], expected, rtol=0, atol=slack)


def test_a_chunk_counts_if_every_token_of_it_has_a_log_probability_on_both_sides():
    chunks = Chunks(
        np.array([[0, 0, 1, 2, 3]]), np.array([[0, 1, 2, 2, 3, NO_CHUNK]]), np.array([[True, True, True, True, False]])
    )
    teacher_BL, student_BL = np.array([[0, 1, 1, 1, 1]], bool), np.array([[1, 1, 0, 1, 1, 0]], bool)
    left = scored(chunks, teacher_BL, student_BL)
    assert left.is_real_BC.tolist() == [[False, True, False, True, False]]
    everything = scored(chunks, np.ones_like(teacher_BL), np.ones_like(student_BL))
    assert everything.is_real_BC.tolist() == chunks.is_real_BC.tolist()
    # neither does a group that one of them is in
    boundary_BL = np.array([[0, -9, 0, -9, 0]], np.float32)
    assert merge(left, boundary_BL, 0.5).is_real_BC.tolist() == [[False, False, False, False, False]]
    second = dataclasses.replace(left, is_real_BC=np.array([[False, True, True, True, False]]))
    assert merge(second, boundary_BL, 0.5).is_real_BC.tolist() == [[False, True, False, False, False]]


@pytest.mark.parametrize("gamma", [-0.1, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(draw, gamma):
    with pytest.raises(InputError, match="gamma is"):
        merge(chunks_of(draw, 0), jnp.zeros((8, LENGTH)), gamma)


@pytest.mark.parametrize("divergence", [ChunkKL(), ChunkReverseKL(), ChunkRenyi(), ChunkTotalVariation()], ids=str)
def test_one_model_with_one_tokenizer_has_no_divergence_and_no_gradient(draw, divergence):
    side, _ = draw(0)
    of_side = locate(side.tokens_BL, side.is_real_BL, side.spelling, tuple(side.spelling.roles))
    chunks, size = align(of_side, of_side), side.tokens_BL.shape[1]
    logp_BL = jnp.asarray(-np.exp(np.random.default_rng(0).normal(size=side.tokens_BL.shape)), jnp.float32)
    chunks = scored(chunks, side.is_real_BL, side.is_real_BL)

    def loss(logp_student_BL):
        teacher_BC, student_BC = (
            chunk_logp(x_BL, chunk_BL, size)
            for x_BL, chunk_BL in ((logp_BL, chunks.teacher_BL), (logp_student_BL, chunks.student_BL))
        )
        return jnp.sum(chunks.is_real_BC * divergence(teacher_BC, student_BC))

    value, slope_BL = jax.value_and_grad(loss)(logp_BL)
    assert chunks.is_real_BC.sum() == side.is_real_BL.sum() > 0
    assert value == 0 and not np.any(slope_BL)
    assert np.any(jax.grad(loss)(logp_BL - 1))
