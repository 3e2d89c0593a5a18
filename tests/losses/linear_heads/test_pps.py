"""A fixed number of different ids: exact laws of the integers, in rational arithmetic, then statistics against float64.

Statistical bounds are four standard errors of what is measured, and the squares of the roundings of at most 50 weights.
"""

import dataclasses
import math
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads import linear_pps
from jaxdistill.losses.linear_heads.pps import reference
from jaxdistill.losses.targets import NO_ID

SMALL, LARGE = 2049, 151_936
KEY = jax.random.key(0)


def head_of(z_V: np.ndarray, tokens: int, padding: int = 0) -> Head:
    """One sequence of `tokens` tokens whose logits are all z_V; padded rows would have larger ones."""
    w_VD = np.concatenate([z_V, np.full(padding, 100.0)])[:, None]
    return Head(jnp.ones((1, tokens, 1)), jnp.asarray(w_VD, jnp.float32), vocab_size=len(z_V))


def exact_head(seed: int, vocab_size: int, shape=(4, 6, 8), padding: int = 0) -> Head:
    """Entries of a few bits, and so logits that are exact in fp32 in whatever pieces they are summed."""
    rng = np.random.default_rng(seed)
    h_BLD = rng.integers(-16, 17, size=shape) / 8
    w_VD = rng.integers(-64, 65, size=(vocab_size + padding, shape[-1])) / 32
    return Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), vocab_size=vocab_size)


def indices(head: Head) -> np.ndarray:
    B, L, _ = head.h_BLD.shape
    return np.arange(B * L, dtype=np.int32).reshape(B, L)


@jax.jit(static_argnames=("size", "implementation", "positions"))
def draw(head, index_BL, key=KEY, *, size=20, implementation=None, positions=None):
    return linear_pps(head, size, key, index_BL=index_BL, implementation=implementation, positions=positions)


def row(kind: str, vocab_size: int) -> np.ndarray:
    """Logits of a flat, a Zipf and a peaked distribution, as fp32 has them, in random order."""
    rank_V = np.random.default_rng(0).permutation(vocab_size) + 1.0
    return (-{"flat": 0.1, "zipf": 1.0, "peaked": 3.0}[kind] * np.log(rank_V)).astype(np.float32)


def threshold_of(p_V: np.ndarray, size: int) -> float:
    """The t at which sum_v min(1, p_v / t) = size, found by bisection of the definition."""
    if size == 1:
        return p_V.sum()
    return scipy.optimize.brentq(lambda t: np.minimum(1, p_V / t).sum() - size, 1e-12, 1.0, xtol=1e-16)


def dense(sample, vocab_size: int) -> np.ndarray:
    """Weights as float64 [tokens, V]; fails where ids repeat, do not ascend or an empty entry is not (NO_ID, 0)."""
    id_TS, weight_TS = (np.asarray(x).reshape(-1, x.shape[-1]) for x in (sample.id_BLS, sample.weight_BLS))
    held_TS = id_TS != NO_ID
    assert np.all((np.diff(id_TS) > 0) | ~held_TS[:, 1:]) and np.all(held_TS == (weight_TS > 0))
    weight_TV = np.zeros((len(id_TS), vocab_size))
    weight_TV[np.nonzero(held_TS)[0], id_TS[held_TS]] = weight_TS[held_TS]
    return weight_TV


# The integers.


@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", range(6))
def test_over_all_offsets_an_id_is_included_as_often_as_its_probability_says_and_never_twice(seed, size):
    mass_V = np.floor(np.random.default_rng(seed).pareto(0.7, size=12) + 1).astype(np.int32)  # some dominate
    mass_V = np.minimum(mass_V, 500)
    parts = reference.split(jnp.asarray(-np.sort(-mass_V)[:size])[None, None], jnp.asarray(mass_V.sum())[None, None])
    threshold = Fraction(int(parts.rest_BL[0, 0]), int(parts.entries_BL[0, 0]))
    assert sum(min(Fraction(1), Fraction(int(m)) / threshold) for m in mass_V) == size
    assert parts.is_certain_BLS.sum() == (mass_V > threshold).sum()
    rest = np.asarray(reference.uncertain(jnp.asarray(mass_V)[None, None], parts)[0, 0])
    n, R = int(parts.entries_BL[0, 0]), int(parts.rest_BL[0, 0])
    point_OS = (np.arange(n) * R + np.arange(R)[:, None]) // n
    count_OV = (np.searchsorted(rest.cumsum(), point_OS, side="right")[..., None] == np.arange(12)).sum(1)
    assert rest.sum() == R and count_OV.max() <= 1
    np.testing.assert_array_equal(count_OV.sum(0), n * rest)  # of R offsets: a share of rest / threshold


@pytest.mark.parametrize("size", [1, 7, 50])
def test_points_are_equal_steps_from_an_offset_below_the_rest(size):
    rng = np.random.default_rng(size)
    mass_BLS = -np.sort(-rng.integers(1, 2**30 // size // 2, size=(2, 3, size)))
    total_BL = mass_BLS.sum(-1) + rng.integers(1, 2**29, size=(2, 3))
    parts = reference.split(jnp.asarray(mass_BLS, jnp.int32), jnp.asarray(total_BL, jnp.int32))
    point_BLS = np.asarray(reference.points(KEY, np.arange(6).reshape(2, 3), parts), np.int64)
    for point_S, certain_S, R, n in zip(
        point_BLS.reshape(6, size), np.asarray(parts.is_certain_BLS).reshape(6, size),
        np.asarray(parts.rest_BL).ravel(), np.asarray(parts.entries_BL).ravel(), strict=True,
    ):  # fmt: skip
        own = point_S[~certain_S]
        offset = own[0] * int(n)  # the first point is offset // n
        assert len(own) == n and own[0] >= 0 and own[-1] < R
        want = [(j * int(R) + offset) // int(n) for j in range(n)]
        assert np.all(own - want >= 0) and np.all(own - want <= 1)  # less than n of the offset is lost by the division


# The law of the weights.


@pytest.mark.parametrize(("kind", "size"), [("flat", 20), ("zipf", 1), ("zipf", 12), ("zipf", 50), ("peaked", 12)])
def test_weights_have_the_mean_and_the_variance_of_the_formulas(kind, size):
    z_V, tokens = row(kind, SMALL), 2000
    p_V = scipy.special.softmax(np.float64(z_V))
    head = head_of(z_V, tokens, padding=127)
    weight_TV = dense(draw(head, indices(head), size=size), SMALL)
    np.testing.assert_array_equal((weight_TV > 0).sum(1), size)
    # The sum is off by the rounding of S weights; a probability by that of what enters exp, and of the mass.
    np.testing.assert_allclose(weight_TV.sum(1), 1, rtol=0, atol=size * 2.0**-24)
    t = threshold_of(p_V, size)
    certain_V, rounding = p_V > t, 2.0**-28 + p_V * 2.0**-24 * 40
    assert np.all(np.abs(weight_TV - p_V)[:, certain_V] <= rounding[certain_V])
    others = weight_TV[:, ~certain_V]
    # The threshold is a share of a sum of masses, each of them rounded by half a unit of more than 2^28.
    np.testing.assert_allclose(others[others > 0], t, rtol=2.0**-24 * 40, atol=SMALL * 2.0**-29)
    square_T = ((weight_TV - p_V) ** 2).sum(1)
    variance_V = p_V * np.maximum(t - p_V, 0)
    assert abs(square_T.mean() - variance_V.sum()) < 4 * square_T.std() / math.sqrt(tokens) + 50 * 2.0**-48
    deviation_V = np.abs(weight_TV.mean(0) - p_V)
    often_V = ~certain_V & (tokens * p_V / t > 100)
    largest = scipy.special.ndtri(1 - 0.5e-3 / max(often_V.sum(), 1))
    assert np.all((deviation_V <= largest * np.sqrt(variance_V / tokens) + rounding)[often_V])


@pytest.mark.parametrize("vocab_size", [60, SMALL])
def test_with_an_entry_for_every_id_it_is_the_distribution_itself(vocab_size):
    z_V = row("zipf", vocab_size)
    head = head_of(z_V, 3, padding=5)
    weight_TV = dense(draw(head, indices(head), size=vocab_size), vocab_size)
    np.testing.assert_allclose(weight_TV, np.tile(scipy.special.softmax(np.float64(z_V)), (3, 1)), rtol=0, atol=2e-6)


# Edges.


@pytest.mark.parametrize("certain", [0, 1000, SMALL - 1])
def test_a_teacher_that_is_certain_gives_its_label_and_nothing_else(certain):
    z_V = np.zeros(SMALL)
    z_V[certain] = 90
    head = head_of(z_V, 3, padding=63)
    weight_TV = dense(draw(head, indices(head)), SMALL)
    assert np.all(weight_TV[:, certain] == 1) and weight_TV.sum() == 3


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_where_fewer_ids_have_mass_than_asked_for_all_of_them_come_with_their_probabilities(implementation):
    z_V = np.full(300, -1e5)
    z_V[[7, 150, 299]] = np.log([0.5, 0.3, 0.2])
    head = head_of(z_V, 4, padding=212)
    sample = draw(head, indices(head), size=5, implementation=implementation)
    np.testing.assert_array_equal(sample.id_BLS[0], np.tile([7, 150, 299, NO_ID, NO_ID], (4, 1)))
    np.testing.assert_allclose(sample.weight_BLS[0], np.tile([0.5, 0.3, 0.2, 0, 0], (4, 1)), rtol=8 * 2.0**-24)


def test_equal_probabilities_are_all_left_to_chance_and_all_come_where_there_is_room():
    head = head_of(np.zeros(64), 500)
    weight_TV = dense(draw(head, indices(head), size=16), 64)
    assert set(np.unique(weight_TV)) == {0, 1 / 16}
    np.testing.assert_array_equal(dense(draw(head, indices(head), size=64), 64), 1 / 64)


@pytest.mark.parametrize(("vocab_size", "padding", "size"), [(5, 0, 3), (SMALL, 127, 256), (LARGE, 0, 50)])
def test_both_implementations_draw_the_same(vocab_size, padding, size):
    head = exact_head(2, vocab_size, (2, 3, 8), padding)
    one, other = (
        draw(head, indices(head), size=size, implementation=name, positions=2) for name in ("chunked", "reference")
    )
    np.testing.assert_array_equal(one.id_BLS, other.id_BLS)
    np.testing.assert_array_equal(one.weight_BLS, other.weight_BLS)


def test_draws_depend_on_neither_chunks_nor_batch():
    head = exact_head(3, SMALL)
    index_BL = indices(head)
    whole = draw(head, index_BL)
    for positions in (1, 4):
        np.testing.assert_array_equal(draw(head, index_BL, positions=positions).id_BLS, whole.id_BLS)
    order = np.array([2, 0, 3, 1])
    shuffled = draw(dataclasses.replace(head, h_BLD=head.h_BLD[order]), index_BL[order])
    np.testing.assert_array_equal(shuffled.id_BLS, whole.id_BLS[order])
    alone = draw(dataclasses.replace(head, h_BLD=head.h_BLD[2:3, 1:4]), index_BL[2:3, 1:4])
    np.testing.assert_array_equal(alone.id_BLS, whole.id_BLS[2:3, 1:4])
    assert np.any(draw(head, index_BL + 24).id_BLS != whole.id_BLS)


def test_a_token_without_finite_logits_gets_weights_that_are_not_numbers():
    head = exact_head(4, 300)
    broken = dataclasses.replace(head, h_BLD=head.h_BLD.at[1, 2].set(jnp.nan))
    got, want = draw(broken, indices(head)), draw(head, indices(head))
    bad_BL = np.isnan(got.weight_BLS).all(-1)
    assert bad_BL[1, 2] and bad_BL.sum() == 1
    np.testing.assert_array_equal(got.weight_BLS[~bad_BL], want.weight_BLS[~bad_BL])


def test_no_buffer_of_the_compiled_op_is_as_large_as_all_logits():
    def largest_buffer(implementation):
        head = exact_head(5, SMALL, (2, 32, 8))
        text = draw.lower(head, indices(head), size=5, implementation=implementation, positions=4).compile().as_text()
        return max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w\[(\d[\d,]*)\]", text))

    assert largest_buffer("reference") >= 2 * 32 * SMALL  # so the search can find one
    assert largest_buffer("chunked") <= 2 * 4 * (SMALL + 32)  # a chunk, with the last bin filled up


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 0}, "size is 0; it must be between 1 and 300"),
        ({"size": 301}, "size is 301; it must be between 1 and 300"),
        ({"implementation": "fused"}, "'fused'"),
    ],
    ids=str,
)
def test_what_it_does_not_know_is_refused(options, sentence):
    head = exact_head(6, 300)
    with pytest.raises(InputError, match=sentence):
        draw.eval_shape(head, indices(head), **options)


def test_a_generator_whose_numbers_depend_on_the_batch_is_refused():
    head = exact_head(0, 33)
    with pytest.raises(InputError, match=r"generator is rbg, .* impl='threefry2x32'"):
        linear_pps(head, 3, jax.random.key(0, impl="rbg"), index_BL=indices(head))
