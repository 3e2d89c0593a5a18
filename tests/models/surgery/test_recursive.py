"""Tied layers with corrections of low rank: what any rank must hold, and the two ends of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models.surgery import merge, patterns, recursive
from jaxdistill.models.surgery.truncate import truncate
from jaxdistill.models.transformer import Transformer

U = 2.0**-24
FULL = 128  # at least the smallest side of any matrix here


def stacked(params):
    return {path: x for path, _, x in dims.leaves(params) if path.startswith("layers/")}


def tied(config, params, number=2):
    return merge.average(config, params, recursive.loops(6, number))[1]


def matrix(own, x):
    """One layer's array as a matrix, spelled out for every name there is."""
    sides = {
        "DHK": ("D", "HK"),
        "DJK": ("D", "JK"),
        "HKD": ("HK", "D"),
        "DF": ("D", "F"),
        "FD": ("F", "D"),
        "DE": ("D", "E"),
    }
    if own not in sides:
        return x.reshape(1, -1)
    return x.reshape(math.prod(x.shape[: len(sides[own][0])]), -1)


def test_layers_are_looped_over():
    assert [list(loop) for loop in recursive.loops(6, 2)] == [[0, 2, 4], [1, 3, 5]]
    assert [list(loop) for loop in recursive.loops(3, 3)] == [[0], [1], [2]]


def test_the_full_rank_restores_every_layer_up_to_rounding(config, draw_host):
    params = draw_host(config)
    shared = tied(config, params)
    got = recursive.materialise(recursive.relax(config, params, shared, FULL))
    assert jax.tree.structure(got) == jax.tree.structure(params)
    dims.check(got, config.dims)
    for path, x in stacked(params).items():
        # LAPACK's backward error is a small multiple of the larger side times u times the norm of the matrix
        norm, side = np.sqrt((np.float64(x) ** 2).sum()), max(x.shape)
        np.testing.assert_allclose(stacked(got)[path], x, rtol=0, atol=4 * side * U * norm, err_msg=path)
    for name in params.keys() - {"layers"}:
        np.testing.assert_array_equal(got[name], params[name])


@pytest.mark.parametrize("config", ["ours", "gemma3", "opt", "mixtral"], indirect=True)
def test_the_relaxed_model_of_full_rank_has_the_logits_of_its_teacher(config, draw_host, logits_of):
    params = draw_host(config)
    got = recursive.materialise(recursive.relax(config, params, tied(config, params), FULL))
    ours, theirs = logits_of(config, got)[..., :37], logits_of(config, params)[..., :37]
    # six layers of some 8 products of at most 128 terms, each off by 2 sqrt(n) u, and as much by what was restored
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2 * 6 * 8 * 2 * math.sqrt(128) * U * np.abs(theirs).max())
    assert np.abs(logits_of(config, recursive.materialise(
        recursive.relax(config, params, tied(config, params), 0)))[..., :37] - theirs).max() > 0.1  # fmt: skip


def test_rank_0_runs_the_shared_layers_again_and_again(config, draw_host):
    params = draw_host(config)
    shared = tied(config, params)
    got = recursive.materialise(recursive.relax(config, params, shared, 0))
    for path, x in stacked(shared).items():
        np.testing.assert_array_equal(stacked(got)[path], x[[0, 1, 0, 1, 0, 1]])


def test_as_many_shared_layers_as_there_are_is_the_identity_at_any_rank(config, draw_host, assert_same):
    params = draw_host(config)
    for rank in (0, 1, FULL):
        assert_same(recursive.materialise(recursive.relax(config, params, params, rank)), params)


@pytest.mark.parametrize("config", ["ours", "opt", "mixtral"], indirect=True)
@pytest.mark.parametrize("rank", [1, 3])
def test_corrections_are_the_best_of_their_rank(config, draw_host, rank):
    """What is left of a matrix is the sum of the squares of its other singular values (Eckart & Young 1936)."""
    params = draw_host(config)
    shared = tied(config, params)
    got = stacked(recursive.materialise(recursive.relax(config, params, shared, rank)))
    for path, x in stacked(params).items():
        own = dims.letters(path.rpartition("/")[2])
        for n in range(6):
            before = np.float64(x[n]) - stacked(shared)[path][n % 2]
            after = np.float64(x[n]) - got[path][n]
            experts = range(x.shape[1]) if own.startswith("E") else [...]
            for e in experts:
                s = scipy.linalg.svdvals(matrix(own.removeprefix("E") if own.startswith("E") else own, before[e]))
                left = math.sqrt((after[e] ** 2).sum())
                bound = 4 * max(x.shape) * U * (s[0] + np.abs(x).max())
                assert abs(left - math.sqrt((s[rank:] ** 2).sum())) <= bound, path


def test_gains_and_biases_are_restored_by_any_correction(configs, draw_host):
    config, params = configs["opt"], draw_host(configs["opt"])
    got = stacked(recursive.materialise(recursive.relax(config, params, tied(config, params), 1)))
    vectors = [path for path in got if "norm" in path or "bias" in path]
    assert len(vectors) == 4 + 4 + 2
    for path in vectors:
        x = stacked(params)[path]
        np.testing.assert_allclose(got[path], x, rtol=0, atol=8 * U * np.abs(x).max() * math.sqrt(x[0].size))


def test_shared_layers_and_corrections_are_counted(configs, draw_host):
    config, params = configs["ours"], draw_host(configs["ours"])
    sizes = [recursive.num_params(recursive.relax(config, params, tied(config, params), rank)) for rank in range(4)]
    two, _ = truncate(config, params, (0, 1))
    padding = (128 - 37) * 16
    assert sizes[0] == two.num_params_total + padding
    # q and o: 16 x 16; k and v: 16 x 8; gate, up and down: 16 x 20; four gains: two of 16 and two of 4
    per_rank = 2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 20)
    gains = 2 * (1 + 16) + 2 * (1 + 4)
    assert sizes[1] - sizes[0] == 6 * (per_rank + gains)
    assert sizes[2] - sizes[1] == sizes[3] - sizes[2] == 6 * per_rank


@pytest.mark.parametrize("keep", [(0, 1), patterns.max_gap(6, 2)], ids=["first", "first and last"])
def test_any_layers_may_be_shared(configs, draw_host, keep):
    config, params = configs["ours"], draw_host(configs["ours"])
    shared = truncate(config, params, keep)[1]
    got = recursive.materialise(recursive.relax(config, params, shared, FULL))
    for path, x in stacked(params).items():
        np.testing.assert_allclose(stacked(got)[path], x, rtol=0, atol=4 * max(x.shape) * U * np.linalg.norm(x))


def test_training_reaches_the_shared_layers_through_every_loop(configs, draw_host):
    config, params = configs["ours"], draw_host(configs["ours"])
    relaxed = recursive.relax(config, params, tied(config, params), 2)
    grads = jax.grad(lambda r: sum(jnp.sum(x) for x in jax.tree.leaves(recursive.materialise(r)["layers"])))(relaxed)
    for _, x in stacked(grads.shared).items():
        np.testing.assert_array_equal(x, np.full(x.shape, 3))
    q = relaxed.right["attention"]["q_DHK"].astype(np.float64)
    np.testing.assert_allclose(
        grads.left["attention"]["q_DHK"],
        np.broadcast_to(q.sum(-1)[:, None], (6, 16, 2)),
        rtol=0,
        atol=64 * U * np.abs(q).max(),
    )


def test_devices_and_shapes_give_what_the_host_gives(configs, draw_host):
    config, params = configs["mixtral"], draw_host(configs["mixtral"])
    here = recursive.relax(config, params, tied(config, params), 3)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves((here, recursive.materialise(here))))
    params = jax.tree.map(jnp.asarray, params)
    there = recursive.relax(config, params, tied(config, params), 3)
    for a, b in zip(*(jax.tree.leaves(recursive.materialise(x)) for x in (here, there)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * 128 * U * np.abs(a).max())  # other bases, one product
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    planned = recursive.relax(config, shapes, tied(config, shapes), 3)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), planned) == jax.tree.map(lambda x: (x.shape, x.dtype), here)
    assert jax.tree.map(lambda x: x.shape, recursive.materialise(planned)) == jax.tree.map(lambda x: x.shape, shapes)


def test_nothing_is_shared_with_what_it_was_made_of(configs, draw_host):
    config, params = configs["ours"], draw_host(configs["ours"])
    relaxed = recursive.relax(config, params, params, 1)
    got = recursive.materialise(relaxed)
    for x in jax.tree.leaves(relaxed.shared):
        assert not any(np.shares_memory(x, y) for y in jax.tree.leaves(params))
    for x in jax.tree.leaves(got):
        assert not any(np.shares_memory(x, y) for y in jax.tree.leaves(relaxed))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, p: recursive.loops(6, 4), "6 layers are no whole number of loops over 4: take one of its divisors"),
        (lambda c, p: recursive.loops(6, 0), "6 layers are no whole number of loops over 0"),
        (lambda c, p: recursive.relax(c, p, p, -1), "a correction of rank -1 is asked for: ask for 0 or more"),
        (
            lambda c, p: recursive.relax(c, p, truncate(c, p, range(4))[1], 1),
            "6 layers are no whole number of loops over 4",
        ),
        (lambda c, p: recursive.relax(c, truncate(c, p, (0, 1))[1], p, 1), "layers/attention/k_DJK has the shape"),
    ],
)
def test_loops_that_make_no_sense_are_refused_in_one_sentence(call, message, configs, draw_host):
    with pytest.raises(InputError, match=f"^{message}"):
        call(configs["ours"], draw_host(configs["ours"]))
