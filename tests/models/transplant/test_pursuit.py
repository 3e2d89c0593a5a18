"""Orthogonal matching pursuit: planted sums are found, shared tokens stay themselves, and fp64 takes the same steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.models.transplant.fills import Mean
from jaxdistill.models.transplant.pursuit import omp, pursue

U = 2.0**-24


def dense(ids, weights, size):
    return np.bincount(np.asarray(ids), np.asarray(weights, np.float64), minlength=size)


def textbook(target, atoms, k):
    """OMP with a least-squares problem in fp64 at every step: weights [A]."""
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    chosen, residual = [], target
    for _ in range(k):
        chosen.append(int(np.argmax(np.abs(unit @ residual))))
        solution = np.linalg.lstsq(atoms[chosen].T, target, rcond=None)[0]
        residual = target - solution @ atoms[chosen]
    return dense(chosen, solution, len(atoms))


def draw(atoms, width, seed=0):
    """Atoms of lengths that differ by a factor of up to 20."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(atoms, width)) * rng.uniform(0.1, 2, size=(atoms, 1)), rng


def test_a_planted_sum_is_found_exactly():
    atoms, rng = draw(60, 64)
    planted = np.zeros((5, 60))
    for row, size in zip(planted, (1, 2, 3, 4, 5), strict=True):
        row[rng.choice(60, size, replace=False)] = rng.choice([-1, 1], size) * rng.uniform(0.5, 2, size)
    donor = np.concatenate([atoms, planted @ atoms])
    got = omp(donor, np.concatenate([np.arange(60), np.full(5, -1)]), k=5)
    condition = np.linalg.cond(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    for row, ids, weights in zip(planted, got.ids, got.weights, strict=True):
        found = dense(ids, weights, 60)
        assert set(np.flatnonzero(found)) == set(np.flatnonzero(row))
        # perturbed least squares: cond^2 sqrt(C) u |target| / |atom|
        bound = condition**2 * 8 * U * np.linalg.norm(row @ atoms) / np.linalg.norm(atoms, axis=1).min()
        np.testing.assert_allclose(found, row, rtol=0, atol=bound)
        assert bound < 0.02


def test_the_steps_are_those_of_the_textbook():
    atoms, rng = draw(80, 24, seed=1)
    for k in (1, 3, 8, 16):
        target = rng.normal(size=24)
        got = dense(*pursue(jnp.asarray(target, jnp.float32), jnp.asarray(atoms, jnp.float32), k), 80)
        expected = textbook(target, atoms, k)
        assert set(np.flatnonzero(got)) == set(np.flatnonzero(expected))
        chosen = np.flatnonzero(expected)
        smallest = np.linalg.svd(atoms[chosen], compute_uv=False)[-1]
        bound = 24 * U * (np.linalg.norm(atoms[chosen], 2) / smallest) ** 2 * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound)
        assert bound < 0.02 * np.abs(expected).max()


def test_a_shared_token_is_itself_whatever_the_lengths_of_the_others():
    atoms, _ = draw(40, 16, seed=2)
    atoms[1] = 50 * (atoms[0] + 0.1 * atoms[2])  # nearly the same direction, and much longer
    for k in (1, 4):
        donor = np.concatenate([atoms, atoms])
        got = omp(donor, np.concatenate([np.arange(40), np.full(40, -1)]), k)
        found = np.stack([dense(ids, weights, 40) for ids, weights in zip(got.ids, got.weights, strict=True)])
        np.testing.assert_allclose(found, np.eye(40), rtol=0, atol=16 * U)
        assert (found != 0).sum() == 40


def test_the_weights_go_to_the_old_ids_of_the_shared_tokens(plain):
    donor, _ = draw(6, 8, seed=3)
    donor[4] = 2 * donor[1] - donor[5]
    copies = np.array([7, 30, -1, 2, -1, 11])
    donor[2] = 0.5 * donor[0]
    got = omp(donor, copies, k=2)(np, plain, 2)
    expected = np.stack([0.5 * plain[7], 2 * plain[30] - plain[11]])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e3 * U * np.abs(plain).max())


def test_more_atoms_than_dimensions_add_nothing_and_stay_finite():
    atoms, rng = draw(30, 4, seed=4)
    target = rng.normal(size=4)
    ids, weights = pursue(jnp.asarray(target, jnp.float32), jnp.asarray(atoms, jnp.float32), 12)
    assert np.count_nonzero(weights) <= 4 and np.all(np.isfinite(weights))
    reached = dense(ids, weights, 30) @ atoms
    np.testing.assert_allclose(reached, target, rtol=0, atol=1e-4 * np.linalg.norm(target))


def test_atoms_that_repeat_or_vanish_do_no_harm():
    atoms, rng = draw(6, 12, seed=5)
    atoms = np.concatenate([atoms, atoms, np.zeros((2, 12))])
    target = rng.normal(size=12)
    ids, weights = pursue(jnp.asarray(target, jnp.float32), jnp.asarray(atoms, jnp.float32), 10)
    assert np.count_nonzero(weights) == 6 and np.all(np.isfinite(weights))
    assert set(np.asarray(ids)[np.asarray(weights) != 0] % 6) == set(range(6))
    expected = np.linalg.lstsq(atoms[:6].T, target, rcond=None)[0] @ atoms[:6]
    np.testing.assert_allclose(dense(ids, weights, 14) @ atoms, expected, rtol=0, atol=1e-4 * np.linalg.norm(target))


def test_a_row_that_no_shared_token_helps_takes_the_rest(plain):
    donor = np.eye(5)
    donor[3] = 0
    got = omp(donor, np.array([0, 1, 2, -1, -1]), k=3, rest=Mean())(np, plain, 2)
    np.testing.assert_array_equal(got, Mean()(np, plain, 2))


def test_batches_change_nothing():
    donor, _ = draw(50, 12, seed=6)
    copies = np.where(np.arange(50) < 20, np.arange(50), -1)
    whole, parts = omp(donor, copies, 4, batch=64), omp(donor, copies, 4, batch=7)
    np.testing.assert_array_equal(whole.ids, parts.ids)
    np.testing.assert_allclose(whole.weights, parts.weights, rtol=0, atol=1e3 * U * np.abs(whole.weights).max())


def test_sixty_four_atoms_leave_the_residual_of_least_squares():
    atoms, rng = draw(200, 128, seed=7)
    target = rng.normal(size=128)
    ids, weights = jax.jit(pursue, static_argnums=2)(*(jnp.asarray(x, jnp.float32) for x in (target, atoms)), 64)
    chosen = np.asarray(ids)
    assert len(set(chosen.tolist())) == 64
    residual = target - np.asarray(weights, np.float64) @ atoms[chosen]
    best = target - np.linalg.lstsq(atoms[chosen].T, target, rcond=None)[0] @ atoms[chosen]
    assert abs(np.linalg.norm(residual) / np.linalg.norm(best) - 1) < 1e-5


def test_nothing_is_pursued_where_every_token_has_a_copy():
    assert omp(np.eye(3), np.arange(3), 2).weights.shape == (0, 2)


@pytest.mark.parametrize(
    ("donor", "k", "message"),
    [
        (np.ones((3, 4)), 1, r"a donor of the shape \[3, 4\] for 4 new tokens"),
        (np.ones(4), 1, r"a donor of the shape \[4\] for 4 new tokens"),
        (np.full((4, 2), np.nan), 1, "the donor has rows that are not finite"),
        (np.ones((4, 2)), 0, "0 tokens are to make up a new one, and 3 are shared"),
        (np.ones((4, 2)), 4, "4 tokens are to make up a new one, and 3 are shared"),
    ],
)
def test_what_does_not_fit_is_refused(donor, k, message):
    with pytest.raises(InputError, match=f"^{message}"):
        omp(donor, np.array([0, 1, 2, -1]), k)
