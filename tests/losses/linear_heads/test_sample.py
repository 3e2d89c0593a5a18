"""Samples of a head: exact laws of the integers they are made of, then statistics at a fixed seed against float64.

Statistical bounds are four standard errors of what is measured, the exact one where a closed form exists.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.bins import binned
from jaxdistill.losses.linear_heads.sample import chunked, reference
from jaxdistill.losses.linear_heads.sample.api import MOST_ROUNDS, linear_sample
from jaxdistill.losses.targets import NO_ID

SMALL, LARGE = 2049, 151_936
SAMPLERS = ("multinomial", "systematic")
EXPONENTS = (0.8, 1.0, 1.2)
KEY = jax.random.key(0)


def head_of(z: np.ndarray, tokens: int, *, padding: int = 0) -> Head:
    """One sequence of `tokens` tokens whose logits are all `z`; padded rows would have larger ones."""
    w_VD = np.concatenate([z, np.full(padding, 100.0)])[:, None]
    return Head(jnp.ones((1, tokens, 1)), jnp.asarray(w_VD, jnp.float32), vocab_size=len(z))


def exact_head(seed, vocab_size, shape=(4, 6, 8), padding=0) -> Head:
    """Entries of a few bits, and so logits that are exact in fp32 in whatever pieces they are summed."""
    rng = np.random.default_rng(seed)
    h_BLD = rng.integers(-16, 17, size=shape) / 8
    w_VD = rng.integers(-64, 65, size=(vocab_size + padding, shape[-1])) / 64
    return Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), vocab_size=vocab_size)


def indices(head: Head) -> np.ndarray:
    B, L, _ = head.h_BLD.shape
    return np.arange(B * L, dtype=np.int32).reshape(B, L)


@jax.jit(static_argnames=("rounds", "sampler", "exponent", "implementation", "positions"))
def draw(
    head, index_BL, key=KEY, *, rounds=50, sampler="multinomial", exponent=1.0, implementation=None, positions=None
):
    return linear_sample(
        head,
        rounds,
        key,
        index_BL=index_BL,
        sampler=sampler,
        exponent=exponent,
        implementation=implementation,
        positions=positions,
    )


def zipf(vocab_size: int, seed: int = 0) -> np.ndarray:
    """Logits of probabilities ~ 1 / rank, in random order, as fp32 has them."""
    return -np.log(np.random.default_rng(seed).permutation(vocab_size) + 1.0).astype(np.float32)


def law(z: np.ndarray, exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """(p, q) in float64."""
    p, q = (np.exp(x - x.max()) for x in (np.float64(z), exponent * np.float64(z)))
    return p / p.sum(), q / q.sum()


def dense(sample, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(counts, weights) as float64 [tokens, V]; fails where an entry that holds nothing is not (NO_ID, 0, 0)."""
    ids, counts, weights = (np.asarray(x)[0] for x in (sample.id_BLS, sample.count_BLS, sample.weight_BLS))
    empty = counts == 0
    assert np.all(ids[empty] == NO_ID) and np.all(ids[~empty] < vocab_size) and not np.any(weights[empty])
    found = np.zeros((2, len(ids), vocab_size))
    rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    found[0][rows[~empty], ids[~empty]], found[1][rows[~empty], ids[~empty]] = counts[~empty], weights[~empty]
    return found[0], found[1]


# The integers.


@pytest.mark.parametrize("width", [1, 2, 4, 16])
@pytest.mark.parametrize("seed", range(4))
def test_looking_up_every_point_finds_every_id_as_often_as_its_mass(seed, width):
    rng = np.random.default_rng(seed)
    mass_V = rng.integers(0, 5, size=37) * rng.integers(0, 2, size=37)
    every = jnp.arange(mass_V.sum())[None, None]
    bins = binned(jnp.asarray(mass_V)[None, None], width, 0)
    found = chunked.invert(bins, bins.sum(-1), lambda x: x, every)[0, 0]
    np.testing.assert_array_equal(found, np.repeat(np.arange(37), mass_V))
    np.testing.assert_array_equal(reference.invert(jnp.cumsum(jnp.asarray(mass_V))[None, None], every)[0, 0], found)


@pytest.mark.parametrize("rounds", [1, 2, 7, 10, 64])
def test_systematic_steps_meet_each_id_floor_or_ceil_times_and_on_average_exactly(rounds):
    mass_V = np.array([0, 3, 1, 0, 17, 2, 14, 4])
    total = mass_V.sum()
    point_OS = jax.vmap(lambda offset: reference.steps(offset, total, rounds))(jnp.arange(total))
    id_OS = np.searchsorted(mass_V.cumsum(), np.asarray(point_OS), side="right")
    count_OV = (id_OS[..., None] == np.arange(8)).sum(1)
    assert np.all(count_OV >= rounds * mass_V // total) and np.all(count_OV <= -(-rounds * mass_V // total))
    np.testing.assert_array_equal(count_OV.sum(0), rounds * mass_V)  # over all offsets, in integers


@pytest.mark.parametrize("rounds", [1, 3, 50, MOST_ROUNDS])
@pytest.mark.parametrize("total", [1, 2**29 - 1, 964_689_921, 2**30 - 1])
def test_steps_are_those_of_unbounded_integers(total, rounds):
    for offset in (0, 1, total // 3, total - 1):
        offset = min(offset, total - 1)
        got = reference.steps(jnp.int32(offset), jnp.int32(total), rounds)
        np.testing.assert_array_equal(got, [(j * total + offset) // rounds for j in range(rounds)])


def test_the_upper_half_of_a_product_is_that_of_unbounded_integers():
    edges = [0, 1, 0xFFFF, 0x10000, 0x10001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    rng = np.random.default_rng(0)
    x = np.concatenate([np.repeat(edges, len(edges)), rng.integers(2**32, size=1000)]).astype(np.uint32)
    y = np.concatenate([np.tile(edges, len(edges)), rng.integers(2**32, size=1000)]).astype(np.uint32)
    want = (x.astype(np.uint64) * y.astype(np.uint64)) >> 32
    np.testing.assert_array_equal(reference.upper_half(jnp.asarray(x), jnp.asarray(y)), want)


def test_uniform_integers_fill_a_range_that_is_no_power_of_two():
    total = int(0.9 * 2**30)  # jax.random.randint gives the first eighth of it a quarter too much
    points = np.asarray(reference.below(jnp.int32(total), KEY, (100_000,)))
    assert points.min() >= 0 and points.max() < total
    assert scipy.stats.kstest(points / total, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rounds", "ids"), [(1, 5), (8, 1), (8, 3), (50, 20), (50, 10_000)])
def test_repetitions_become_counts(seed, rounds, ids):
    drawn = np.random.default_rng(seed).integers(ids, size=(2, 3, rounds)).astype(np.int32)
    id_BLS, count_BLS = reference.distinct(jnp.asarray(drawn))
    for b in range(2):
        for t in range(3):
            want, counts = np.unique(drawn[b, t], return_counts=True)
            np.testing.assert_array_equal(id_BLS[b, t, : len(want)], want)
            np.testing.assert_array_equal(count_BLS[b, t, : len(want)], counts)
            assert np.all(id_BLS[b, t, len(want) :] == NO_ID) and not np.any(count_BLS[b, t, len(want) :])


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 100.0])
def test_masses_are_probabilities_to_29_bits(spread):
    z = (spread * np.random.default_rng(0).normal(size=SMALL)).astype(np.float32)
    lse = np.logaddexp.reduce(np.float64(z))
    mass = np.asarray(reference.masses(jnp.asarray(z), jnp.float32(lse), 1.0), np.int64)
    assert 2**28 < mass.sum() < 2**30
    # half a unit of rounding of more than 2^28.2 units, and the rounding of what enters exp
    bound = 2.0**-29 + law(z, 1.0)[0] * 2.0**-24 * (np.abs(z).max() + 8)
    assert np.all(np.abs(mass / mass.sum() - law(z, 1.0)[0]) <= 1.1 * bound)


# The law of the draws.


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_weights_have_the_mean_and_the_variance_of_the_formulas(sampler, exponent):
    z, tokens = zipf(SMALL), 2000
    head = head_of(z, tokens, padding=127)
    count_TV, weight_TV = dense(draw(head, indices(head), sampler=sampler, exponent=exponent), SMALL)
    p, q = law(z, exponent)
    np.testing.assert_array_equal(count_TV.sum(1), 50)
    # (p^2 / q - p^2) / N for independent draws; a count that is the floor of N q or one more varies by f (1 - f)
    f = 50 * q % 1
    variance = (p**2 / q - p**2) / 50 if sampler == "multinomial" else f * (1 - f) * (p / q / 50) ** 2
    square_T = ((weight_TV - p) ** 2).sum(1)
    assert abs(square_T.mean() - variance.sum()) < 4 * square_T.std() / math.sqrt(tokens)
    # The mean of an id that is drawn often is nearly normal, and the largest deviation of many bounded by Bonferroni.
    often = tokens * 50 * q > 100
    largest = scipy.stats.norm.isf(1e-3 / often.sum())
    assert often.sum() > 20
    assert np.all(np.abs(weight_TV.mean(0) - p)[often] <= largest * np.sqrt(variance / tokens)[often] + 1e-6 * p[often])
    rest_T = weight_TV[:, ~often].sum(1)
    assert abs(rest_T.mean() - p[~often].sum()) < 4 * rest_T.std() / math.sqrt(tokens)


def test_the_variance_is_least_at_exponent_1_and_alike_around_it():
    def total(exponent):
        p, q = law(zipf(SMALL), exponent)
        return (p**2 / q - p**2).sum()

    p, _ = law(zipf(SMALL), 1.0)
    assert total(1.0) == pytest.approx(1 - (p**2).sum(), rel=1e-12)
    assert total(0.8) == pytest.approx(total(1.2), rel=1e-12) and total(0.8) > total(1.0)


@pytest.mark.parametrize(("rounds", "exponent"), [(1, 1.0), (12, 0.8), (50, 1.0), (256, 1.2)])
def test_systematic_counts_are_the_floor_or_the_ceil(rounds, exponent):
    z = zipf(SMALL)
    head = head_of(z, 40)
    count_TV, _ = dense(draw(head, indices(head), rounds=rounds, sampler="systematic", exponent=exponent), SMALL)
    _, q = law(z, exponent)
    error = rounds * (2.0**-29 + q * 2.0**-20)  # of a mass, as in the test of masses; |z| < 8
    assert np.all(count_TV >= np.floor(rounds * q - error)) and np.all(count_TV <= np.ceil(rounds * q + error))


@pytest.mark.parametrize(
    ("vocab_size", "tokens", "exponent"), [(60, 400, 1.0), (SMALL, 400, 1.2), (SMALL, 400, 0.8), (LARGE, 64, 1.0)]
)
def test_counts_pass_a_chi_square_test(vocab_size, tokens, exponent):
    z = zipf(vocab_size)
    head = head_of(z, tokens)
    sample = draw(head, indices(head), rounds=256, exponent=exponent, positions=64)
    observed = np.zeros(vocab_size)
    held = np.asarray(sample.count_BLS) > 0
    np.add.at(observed, np.asarray(sample.id_BLS)[held], np.asarray(sample.count_BLS)[held])
    _, q = law(z, exponent)
    group = np.floor(np.cumsum(q) * 60 - q * 30).astype(int)  # neighbours in id, of some 1/60 of the mass
    observed, expected = (np.bincount(group, x) for x in (observed, 256 * tokens * q))
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert len(expected) > 20 and expected.min() > 5
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize(("rounds", "exponent"), [(2, 1.0), (50, 0.8), (50, 1.2), (256, 1.0)])
def test_the_number_of_different_ids_is_as_expected(rounds, exponent):
    z = zipf(SMALL)
    head = head_of(z, 500)
    unique_T = (np.asarray(draw(head, indices(head), rounds=rounds, exponent=exponent).count_BLS[0]) > 0).sum(1)
    expected = -np.expm1(rounds * np.log1p(-law(z, exponent)[1])).sum()  # sum_v 1 - (1 - q_v)^N
    assert abs(unique_T.mean() - expected) < 4 * unique_T.std() / math.sqrt(500)


# Edges.


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_at_exponent_1_weights_are_counts_over_rounds(sampler):
    head = exact_head(0, SMALL)
    sample = draw(head, indices(head), sampler=sampler)
    # one rounding: XLA multiplies by 1 / 50 where it is told to divide
    np.testing.assert_allclose(sample.weight_BLS, np.asarray(sample.count_BLS) / 50, rtol=2.0**-23)


@pytest.mark.parametrize(("sampler", "exponent"), [("multinomial", 1.0), ("systematic", 0.8)])
def test_one_round_draws_one_id(sampler, exponent):
    head = exact_head(1, SMALL)
    sample = draw(head, indices(head), rounds=1, sampler=sampler, exponent=exponent)
    assert sample.id_BLS.shape == (4, 6, 1)
    assert np.all(sample.count_BLS == 1) and np.all((sample.id_BLS >= 0) & (sample.id_BLS < SMALL))


@pytest.mark.parametrize(("sampler", "exponent"), [("multinomial", 1.0), ("systematic", 0.8), ("systematic", 1.2)])
@pytest.mark.parametrize("certain", [0, 1, 1000, SMALL - 1])
def test_a_teacher_that_is_certain_gives_its_label(certain, sampler, exponent):
    z = np.zeros(SMALL)
    z[certain] = 90
    head = head_of(z, 3, padding=63)
    count_TV, weight_TV = dense(draw(head, indices(head), sampler=sampler, exponent=exponent), SMALL)
    assert np.all(count_TV[:, certain] == 50)
    # p / q = 1 is a difference of four numbers of at most 108, each rounded
    np.testing.assert_allclose(weight_TV[:, certain], 1, rtol=4 * 108 * 2.0**-24)


@pytest.mark.parametrize("shift", [-400.0, 400.0])
def test_a_common_shift_of_all_logits_changes_nothing(shift):
    z = np.random.default_rng(0).integers(-40, 41, size=SMALL) / 8  # exact, and so are z + shift and their differences
    head, shifted = head_of(z, 5), head_of(z + shift, 5)
    one, other = (draw(x, indices(x), exponent=1.25) for x in (head, shifted))
    np.testing.assert_array_equal(one.id_BLS, other.id_BLS)  # exact logits less a whole number: the same masses
    np.testing.assert_array_equal(one.count_BLS, other.count_BLS)
    # what is left of lse_q - lse - (exponent - 1) z, of numbers up to 1.25 x 408
    np.testing.assert_allclose(one.weight_BLS, other.weight_BLS, rtol=8 * 512 * 2.0**-24)


@pytest.mark.parametrize(("implementation", "exponent"), [("chunked", 0.01), ("chunked", 1.0), ("reference", 0.01)])
def test_neither_padded_rows_nor_impossible_ids_are_drawn(implementation, exponent):
    z = np.where(np.arange(300) % 3 == 1, 0.0, -1e5)
    head = head_of(z, 50, padding=212)
    sample = draw(head, indices(head), rounds=256, exponent=exponent, implementation=implementation)
    drawn = np.asarray(sample.id_BLS)[np.asarray(sample.count_BLS) > 0]
    assert drawn.max() < 300 and np.all(drawn % 3 == 1)


@pytest.mark.parametrize(
    ("vocab_size", "padding", "rounds", "sampler"),
    [
        (5, 0, 50, "multinomial"),
        (SMALL, 127, 256, "systematic"),
        (LARGE, 0, 50, "multinomial"),
    ],
)
def test_both_implementations_draw_the_same(vocab_size, padding, rounds, sampler):
    head = exact_head(2, vocab_size, (2, 3, 8), padding)
    one, other = (
        draw(head, indices(head), rounds=rounds, sampler=sampler, exponent=0.8, implementation=name, positions=2)
        for name in ("chunked", "reference")
    )
    np.testing.assert_array_equal(one.id_BLS, other.id_BLS)
    np.testing.assert_array_equal(one.count_BLS, other.count_BLS)
    # lse and lse_q each differ by the rounding of a sum of V terms in another order
    rtol = 4 * 2.0**-24 * (2 * math.sqrt(vocab_size) + 16)
    np.testing.assert_allclose(one.weight_BLS, other.weight_BLS, rtol=rtol)


def test_draws_depend_on_neither_chunks_nor_batch():
    head = exact_head(3, SMALL)
    index_BL = indices(head)
    whole = draw(head, index_BL)
    for positions in (1, 4):
        other = draw(head, index_BL, positions=positions)
        np.testing.assert_array_equal(other.id_BLS, whole.id_BLS)
        np.testing.assert_array_equal(other.count_BLS, whole.count_BLS)
    order = np.array([2, 0, 3, 1])
    shuffled = draw(dataclasses.replace(head, h_BLD=head.h_BLD[order]), index_BL[order])
    np.testing.assert_array_equal(shuffled.id_BLS, whole.id_BLS[order])
    alone = draw(dataclasses.replace(head, h_BLD=head.h_BLD[2:3, 1:4]), index_BL[2:3, 1:4])
    np.testing.assert_array_equal(alone.id_BLS, whole.id_BLS[2:3, 1:4])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_token_and_every_key_draws_anew(sampler):
    index_BL, total_BL = np.arange(200).reshape(1, 200), np.full((1, 200), 2**30 - 1)
    found = [reference.points(key, index_BL, total_BL, 3, sampler) for key in jax.random.split(KEY)]
    assert len(np.unique(np.concatenate(found)[..., 0])) == 400


def test_indices_may_be_any_integers_of_32_bits():
    index_BL, total_BL = np.array([[2**32 - 1, 2**31]], np.uint32), np.full((1, 2), 2**30 - 1)
    unsigned, signed = (
        reference.points(KEY, x, total_BL, 3, "multinomial") for x in (index_BL, index_BL.view(np.int32))
    )
    np.testing.assert_array_equal(unsigned, signed)


def test_a_token_without_finite_logits_gets_weights_that_are_not_numbers():
    head = exact_head(4, 300)
    broken = dataclasses.replace(head, h_BLD=head.h_BLD.at[1, 2].set(jnp.nan))
    got, want = draw(broken, indices(head)), draw(head, indices(head))
    bad_BL = (np.isnan(got.weight_BLS) == (np.asarray(got.count_BLS) > 0)).all(-1)
    assert bad_BL[1, 2] and bad_BL.sum() == 1 and np.isnan(got.lse_BL[1, 2])
    np.testing.assert_array_equal(got.weight_BLS[~bad_BL], want.weight_BLS[~bad_BL])


def test_no_buffer_of_the_compiled_op_is_as_large_as_all_logits():
    def largest_buffer(implementation):
        head = exact_head(5, SMALL, (2, 32, 8))
        text = draw.lower(head, indices(head), rounds=5, implementation=implementation, positions=4).compile().as_text()
        return max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w\[(\d[\d,]*)\]", text))

    assert largest_buffer("reference") >= 2 * 32 * SMALL  # so the search can find one
    assert largest_buffer("chunked") <= 2 * 4 * (SMALL + 32)  # a chunk, with the last bin filled up


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rounds": 0}, "rounds is 0; .* between 1 and 32768"),
        ({"rounds": MOST_ROUNDS + 1}, "rounds is 32769"),
        ({"sampler": "gumbel"}, "no sampler 'gumbel'; there are 'multinomial' and 'systematic'"),
        ({"exponent": 0.0}, "exponent is 0.0; it must be above 0"),
        ({"implementation": "fused"}, "'fused'"),
    ],
    ids=str,
)
def test_what_it_does_not_know_is_refused(options, sentence):
    head = exact_head(6, 300)
    with pytest.raises(InputError, match=sentence):
        draw.eval_shape(head, indices(head), **options)


@pytest.mark.parametrize("index_BL", [np.arange(24), np.zeros((4, 5), np.int32), np.zeros((4, 6), np.float32)], ids=str)
def test_an_index_that_does_not_fit_the_tokens_is_refused(index_BL):
    with pytest.raises(InputError, match=r"index_BL is .* for each of the \(4, 6\) tokens"):
        linear_sample(exact_head(7, 300), 5, KEY, index_BL=index_BL)


def test_a_generator_whose_numbers_depend_on_the_batch_is_refused():
    head = exact_head(0, 33)
    with pytest.raises(InputError, match=r"generator is rbg, .* impl='threefry2x32'"):
        linear_sample(head, 3, jax.random.key(0, impl="rbg"), index_BL=indices(head))
