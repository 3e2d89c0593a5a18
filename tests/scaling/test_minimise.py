"""The optimiser against SciPy, finite differences, and the early stop that it is there to avoid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxdistill.scaling import forms, laws, minimise, newton

DELTA = 1e-3


@pytest.fixture(scope="module")
def chinchilla():
    """240 noisy runs from the law of Besiroglu et al., over the sizes and budgets of Hoffmann et al."""
    rng = np.random.default_rng(0)
    N, C = 10 ** rng.uniform(7.8, 10.2, 240), 10 ** rng.uniform(18.7, 21.5, 240)
    loss = laws.supervised(laws.BESIROGLU, N, C / (6 * N)) * np.exp(0.004 * rng.standard_t(4, 240))
    return {"N": N, "D": C / (6 * N), "log_loss": np.log(loss)}


def theta_of(law):
    return np.log([law.A, law.B, law.E, law.alpha, law.beta, law.gamma])


def value_and_gradient(data, scale):
    """SciPy's view: `scale` times the objective of the five parameters of the law with gamma = 1."""

    @jax.jit
    def both(x):
        theta = jnp.concatenate([x, jnp.zeros(1)])
        f = lambda t: newton.objective(forms.supervised_law, t, data, 1.0, DELTA)  # noqa: E731
        value, gradient = jax.value_and_grad(f)(theta)
        return scale * value, scale * gradient[:5]

    return lambda x: tuple(np.asarray(part, np.float64) for part in both(jnp.asarray(x)))


def ours(data, delta=DELTA, form=forms.GAMMA_ONE):
    grid = form.starts()
    start = grid[np.argsort(minimise.values(form.law, data, delta, grid))[:27]]
    return minimise.minimise(form.law, data, delta, form.free_P, start, np.ones((27, len(data["N"]))))


def test_scipys_default_stops_early_where_ours_reaches_the_optimum(chinchilla):
    """The mean of Huber_delta, as Hoffmann et al. minimised it, is so small that the default tolerances end at once."""
    runs = len(chinchilla["N"])
    start = theta_of(laws.HOFFMANN)[:5]
    with minimise.float64_on_cpu():
        columns = {name: jnp.asarray(column) for name, column in chinchilla.items()}
        early = scipy.optimize.minimize(
            value_and_gradient(columns, DELTA**2 / runs), start, jac=True, method="L-BFGS-B"
        )
        exact = dict(ftol=0, gtol=1e-7, maxiter=5000, maxfun=20000)
        late = scipy.optimize.minimize(
            value_and_gradient(columns, 1.0), start, jac=True, method="L-BFGS-B", options=exact
        )
    ends = ours(chinchilla)
    best = np.nanmin(ends.value_K)
    assert early.success and early.fun * runs / DELTA**2 > 1.01 * best
    assert best == pytest.approx(late.fun, rel=1e-9)
    np.testing.assert_allclose(ends.theta_KP[np.nanargmin(ends.value_K), :5], late.x, rtol=1e-4)
    assert np.mean(ends.value_K <= best * (1 + 1e-6)) > 0.5


def test_the_papers_tiny_delta_ends_at_a_minimum_that_no_nearby_point_beats(chinchilla):
    ends = ours(chinchilla, delta=1e-4)
    best = ends.theta_KP[np.nanargmin(ends.value_K)]
    search = scipy.optimize.minimize(
        lambda x: float(minimise.values(forms.supervised_law, chinchilla, 1e-4, np.append(x, 0.0)[None])[0]),
        best[:5],
        method="Nelder-Mead",
        options={"maxfev": 3000, "xatol": 1e-10, "fatol": 1e-10},
    )
    assert np.nanmin(ends.value_K) <= search.fun + 1e-6


@pytest.mark.parametrize("form", [forms.GAMMA_FREE, forms.distillation_forms(laws.BUSBRIDGE_SUPERVISED, True)[-1]])
def test_gradient_and_hessian_match_finite_differences(form):
    rng = np.random.default_rng(1)
    data = {"N": 10 ** rng.uniform(8, 10, 20), "D": 10 ** rng.uniform(9, 12, 20), "L_T": rng.uniform(1.8, 2.8, 20)}
    data |= {"L_supervised": rng.uniform(1.8, 2.8, 20), "log_loss": np.log(rng.uniform(2, 3, 20))}
    theta = np.log([2000.0, 15000.0, 1.2, 0.4, 0.45, 0.5])
    if form.law is forms.distillation_law:
        theta = np.log([2000.0, 50.0, 0.3, 0.5, 0.8, np.e**2, 2.0, 0.1, 500.0])
    delta = 0.05

    def f(theta):
        return newton.objective(form.law, theta, data, 1.0, delta)

    gradient_at, hessian_at = jax.jit(jax.grad(f)), jax.jit(jax.hessian(f))
    step = 1e-5 * np.eye(len(theta))
    with minimise.float64_on_cpu():
        gradient, hessian = np.asarray(gradient_at(jnp.asarray(theta))), np.asarray(hessian_at(jnp.asarray(theta)))
        curvature = [(gradient_at(jnp.asarray(theta + s)) - gradient_at(jnp.asarray(theta - s))) / 2e-5 for s in step]
    slope = [(f(theta + s) - f(theta - s)) / 2e-5 for s in step]
    np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-7 * abs(gradient).max())
    np.testing.assert_allclose(hessian, curvature, rtol=1e-5, atol=1e-6 * abs(hessian).max())


def test_weights_count_runs_and_zero_leaves_one_out(chinchilla):
    few = {name: column[:30] for name, column in chinchilla.items()}
    twice = {name: np.concatenate([column[1:30], column[1:2]]) for name, column in chinchilla.items()}
    weight = np.ones(30)
    weight[:2] = 0, 2
    form, start = forms.GAMMA_ONE, theta_of(laws.BESIROGLU)[None]
    weighted = minimise.minimise(form.law, few, DELTA, form.free_P, start, weight[None])
    repeated = minimise.minimise(form.law, twice, DELTA, form.free_P, start, np.ones((1, 30)))
    np.testing.assert_allclose(weighted.value_K, repeated.value_K, rtol=1e-9)
    np.testing.assert_allclose(weighted.theta_KP, repeated.theta_KP, rtol=1e-6, atol=1e-9)


def test_neither_order_nor_company_of_the_problems_matters(chinchilla):
    """Seventy problems go through fewer lanes, each place taken by another when its problem is done."""
    few = {name: column[:30] for name, column in chinchilla.items()}
    rng, form = np.random.default_rng(2), forms.GAMMA_ONE
    count_KR = rng.multinomial(30, np.full(30, 1 / 30), size=70).astype(float)
    start_KP = theta_of(laws.BESIROGLU) + 0.3 * rng.standard_normal((70, 6)) * form.free_P

    def ends(rows):
        return minimise.minimise(form.law, few, DELTA, form.free_P, start_KP[rows], count_KR[rows])

    together, order = ends(np.arange(70)), rng.permutation(70)
    shuffled, alone = ends(order), ends(np.arange(3))
    np.testing.assert_allclose(shuffled.value_K, together.value_K[order], rtol=1e-9)
    np.testing.assert_allclose(shuffled.theta_KP, together.theta_KP[order], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(alone.value_K, together.value_K[:3], rtol=1e-9)


def test_held_coordinates_do_not_move_and_jax_stays_in_32_bits(chinchilla):
    ends = ours(chinchilla)
    assert (ends.theta_KP[:, 5] == 0).all()
    assert ends.theta_KP.dtype == np.float64
    assert jnp.ones(1).dtype == jnp.float32
