"""Targets survive the way to columns and back."""

import numpy as np
import pytest

from jaxdistill.cache import codec
from jaxdistill.cache.columns import Column, to_columns
from jaxdistill.cache.samplers import PPS, Draws, Top, TopP
from jaxdistill.head import MASKED
from jaxdistill.losses.targets import NO_ID, Sampled, TopK

V, L, B = 151_936, 64, 3


def draws(rounds, generator):
    """Draws of distinct ids with random counts, as the sampler gives them."""
    id_BLS = np.full((B, L, rounds), NO_ID, np.int32)
    count_BLS = np.zeros((B, L, rounds), np.int32)
    for place in np.ndindex(B, L):
        drawn = generator.choice(V, rounds) if generator.random() < 0.5 else generator.integers(V - 3, V, rounds)
        ids, counts = np.unique(drawn, return_counts=True)
        id_BLS[(*place, slice(len(ids)))], count_BLS[(*place, slice(len(ids)))] = ids, counts
    return Sampled(np.zeros((B, L), np.int32), id_BLS, (count_BLS / np.float32(rounds)).astype(np.float32)), count_BLS


def through(layout, target, uniform=0.5):
    packed = layout.pack(target, np.full((B, L), uniform, np.float32))
    packed = packed | {f"{name}_BL": getattr(target, f"{name}_BL") for name in layout.extra}
    columns = layout.columns | {name: Column("float16", L) for name in layout.extra}
    rows = to_columns(packed, columns)
    for name, column in columns.items():
        assert rows[name].shape == (B, column.width) and rows[name].dtype == column.dtype
    return layout.target(rows, target.label_BL)


@pytest.mark.parametrize("rounds", [1, 50, 127, 300])
def test_counts_come_back_exactly_whatever_their_number_and_with_ids_beyond_17_bits(rounds):
    target, count_BLS = draws(rounds, np.random.default_rng(0))
    back = through(codec.layout(Draws(rounds), V, L, 1 / 64), target)
    S = back.id_BLS.shape[-1]
    assert (count_BLS > 0).sum(-1).max() == S  # as wide as the fullest token, no wider
    np.testing.assert_array_equal(back.id_BLS, target.id_BLS[..., :S])
    np.testing.assert_array_equal(np.round(back.weight_BLS * rounds), count_BLS[..., :S])
    np.testing.assert_allclose(back.weight_BLS.sum(-1), 1, rtol=rounds * 2**-24)


def ranked(K, generator, spread):
    logp_BLV = generator.normal(size=(B, L, 4 * K)) * spread
    logp_BLV -= np.log(np.exp(logp_BLV).sum(-1, keepdims=True))
    order = np.argsort(-logp_BLV, axis=-1)[..., :K]
    id_BLS = np.stack([generator.choice(V, K, replace=False) for _ in range(B * L)]).reshape(B, L, K).astype(np.int32)
    logp_BLS = np.take_along_axis(logp_BLV, order, -1).astype(np.float32)
    rest = np.sort(np.exp(logp_BLV), axis=-1)[..., :-K].sum(-1)
    return TopK(np.zeros((B, L), np.int32), id_BLS, logp_BLS, np.log(rest).astype(np.float32))


@pytest.mark.parametrize("resolution", [1 / 16, 1 / 64, 1 / 512])
@pytest.mark.parametrize("spread", [0.1, 3.0, 10.0])
def test_top_k_comes_back_in_order_within_half_a_level_and_with_its_tail(resolution, spread):
    target = ranked(50, np.random.default_rng(1), spread)
    back = through(codec.layout(Top(50), V, L, resolution), target)
    np.testing.assert_array_equal(back.id_BLS, target.id_BLS)
    assert (np.diff(back.logp_BLS, axis=-1) <= 0).all()
    # half a level, and what makes kept mass and stored tail (float16, 2^-11) sum to one
    p, q = np.exp(target.logp_BLS.astype(np.float64)), np.exp(back.logp_BLS.astype(np.float64))
    kept, tail = p.sum(-1), np.exp(target.logtail_BL.astype(np.float64))
    slack = resolution / 2 + np.abs(target.logtail_BL) * 2.0**-11 * tail / kept + 1e-5
    assert (np.abs(back.logp_BLS - target.logp_BLS) <= resolution / 2 + slack[..., None]).all()
    np.testing.assert_allclose(q.sum(-1) + np.exp(back.logtail_BL), 1, atol=1e-5)
    kl = (p * (target.logp_BLS - back.logp_BLS)).sum(-1) + tail * (target.logtail_BL - back.logtail_BL)
    assert kl.mean() < resolution**2 / 12 + 1e-6  # uniform rounding errors give resolution^2 / 24


def test_entries_that_hold_nothing_stay_empty():
    target = ranked(8, np.random.default_rng(2), 3.0)
    held = np.arange(8) < np.random.default_rng(3).integers(1, 9, (B, L, 1))
    id_BLS = np.where(held, target.id_BLS, NO_ID).astype(np.int32)
    logp_BLS = np.where(held, target.logp_BLS, np.float32(MASKED))
    dropped = np.exp(target.logtail_BL) + np.where(held, 0, np.exp(target.logp_BLS)).sum(-1)
    tail = np.log(dropped).astype(np.float32)
    back = through(codec.layout(TopP(0.9, 8), V, L, 1 / 64), TopK(target.label_BL, id_BLS, logp_BLS, tail))
    np.testing.assert_array_equal(back.id_BLS, id_BLS)
    assert (back.logp_BLS[~held] == np.float32(MASKED)).all()


def test_a_whole_distribution_has_no_tail():
    target = ranked(8, np.random.default_rng(4), 1.0)
    logp = target.logp_BLS - np.log(np.exp(target.logp_BLS).sum(-1, keepdims=True))
    none = np.full((B, L), np.float32(MASKED))
    back = through(codec.layout(Top(8), V, L, 1 / 64), TopK(target.label_BL, target.id_BLS, logp, none))
    np.testing.assert_allclose(np.exp(back.logp_BLS).sum(-1), 1, rtol=1e-5)
    assert (back.logtail_BL == np.float32(MASKED)).all()


@pytest.mark.parametrize("weight", [3e-6, 0.0123, 0.5, 1.0, 40.0])
@pytest.mark.parametrize("resolution", [1 / 4, 1 / 64])
def test_weights_are_right_in_expectation_though_they_lie_on_a_grid(weight, resolution):
    uniform = (np.arange(2**16) + 0.5) / 2**16
    level = np.asarray(codec.random_levels(np.float32(weight), uniform.astype(np.float32), resolution), np.float64)
    assert set(np.diff(np.unique(level))) <= {1.0}
    # fp32 places a logarithm up to 16 / resolution levels away within 2^-24 of that; 2^-16 from the grid of uniforms
    mean = np.exp(codec.LARGEST - resolution * level).mean()
    assert abs(mean / weight - 1) < 32 * 2.0**-24 + resolution * 2.0**-16


def test_a_weight_that_no_level_reaches_empties_its_token_which_a_build_refuses():
    weight_BLS = np.full((B, L, 3), 0.3, np.float32)
    weight_BLS[1, 5, 2] = 1e7
    id_BLS = np.broadcast_to(np.arange(3, dtype=np.int32), (B, L, 3))
    layout = codec.layout(Draws(3, exponent=2.0), V, L, 1 / 64)
    packed = layout.pack(Sampled(np.zeros((B, L), np.int32), id_BLS, weight_BLS), np.zeros((B, L), np.float32))
    number_BL = np.asarray(packed["number_BL"])
    assert number_BL[1, 5] == 0 and (np.delete(number_BL.ravel(), L + 5) == 3).all()


def test_a_sample_with_weights_comes_back_by_weight_and_without_bias():
    generator = np.random.default_rng(5)
    weight_BLS = np.sort(generator.random((B, L, 12)).astype(np.float32) + 1e-3)
    id_BLS = np.sort(np.stack([generator.choice(V, 12, replace=False) for _ in range(B * L)]).reshape(B, L, 12), -1)
    target = Sampled(np.zeros((B, L), np.int32), id_BLS.astype(np.int32), weight_BLS)
    layout = codec.layout(PPS(12), V, L, 1 / 16)
    assert layout == codec.layout(Draws(12, exponent=1.2), V, L, 1 / 16)
    total, redraws = np.zeros_like(weight_BLS, np.float64), 64
    for redraw in range(redraws):
        back = through(layout, target, (redraw + 0.5) / redraws)
        order = np.argsort(back.id_BLS, axis=-1)
        np.testing.assert_array_equal(np.take_along_axis(back.id_BLS, order, -1), id_BLS)
        total += np.take_along_axis(back.weight_BLS, order, -1)
    np.testing.assert_allclose(total / redraws, weight_BLS, rtol=1 / 16 / redraws + 1e-5)
