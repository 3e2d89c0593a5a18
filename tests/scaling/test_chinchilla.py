"""The runs of Hoffmann et al., as Besiroglu et al. (arXiv 2404.10102) read them off a figure: the fit they publish.

The file is theirs and does not come with this code. Fetch `data/svg_extracted_data.csv` of the repository
epoch-research/analyzing-chinchilla, and name it with --chinchilla-csv or in JAXDISTILL_CHINCHILLA_CSV.
"""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxdistill.scaling import forms, laws, minimise, newton, table
from jaxdistill.scaling.fit import fit_supervised
from jaxdistill.scaling.regression import Settings

DELTA = 1e-3


@pytest.fixture(scope="module")
def runs(request):
    """240 runs: those of the file without the five of highest loss, which have seen less than a token a parameter."""
    path = request.config.getoption("--chinchilla-csv")
    if not path:
        pytest.skip("no --chinchilla-csv")
    with open(path, newline="") as file:
        rows = [(float(r["Model Size"]), float(r["Training FLOP"]), float(r["loss"])) for r in csv.DictReader(file)]
    assert len(rows) == 245
    kept = sorted(rows, key=lambda row: row[2])[:-5]
    return table.table([{"N": N, "D": C / (6 * N), "loss": loss} for N, C, loss in kept])


@pytest.fixture(scope="module")
def fit(runs):
    return fit_supervised(runs, Settings(delta=DELTA, resamples=4000, held_out=0), laws=(forms.GAMMA_ONE,))


@pytest.fixture(scope="module")
def data(runs):
    return {"N": runs["N"], "D": runs["D"], "log_loss": np.log(runs["loss"])}


def test_the_converged_fit_is_the_published_one(fit):
    assert fit.objective * DELTA**2 == pytest.approx(1.018274e-3, abs=1e-8)
    expected = {"A": (477.8, 0.5), "B": (2143, 3), "E": (1.8172, 1e-4), "alpha": (0.3473, 1e-4), "beta": (0.3672, 1e-4)}
    for name, (value, tolerance) in expected.items():
        assert getattr(fit.params, name) == pytest.approx(value, abs=tolerance)


def test_the_bootstrap_has_the_published_spread(fit):
    for name, (deviation, tolerance) in {
        "alpha": (0.015, 0.002),
        "beta": (0.0206, 0.002),
        "E": (0.0255, 0.003),
    }.items():
        assert getattr(fit.draws, name).std() == pytest.approx(deviation, abs=tolerance)
    intervals = {parameter.symbol: (parameter.low, parameter.high) for parameter in fit.parameters}
    assert intervals["alpha"] == pytest.approx((0.321, 0.369), abs=0.004)
    assert intervals["beta"] == pytest.approx((0.340, 0.409), abs=0.004)


def objective_at(data, law):
    theta = np.log([[law.A, law.B, law.E, law.alpha, law.beta, law.gamma]])
    return minimise.values(forms.supervised_law, data, DELTA, theta).item() * DELTA**2


def test_the_objective_at_hoffmanns_parameters_is_the_published_one(data):
    exact = dataclasses.replace(laws.HOFFMANN, E=1.6934, alpha=0.3392, beta=0.2849)
    assert objective_at(data, laws.HOFFMANN) == pytest.approx(4.1210e-3, abs=1e-6)
    assert objective_at(data, exact) == pytest.approx(1.23116e-3, rel=0.02)  # the digits of A and B are rounded


def scipys_end(data, start, scale):
    """Sum of Huber_delta where SciPy stops by its default tolerances, given `scale` times it and its exact gradient."""
    with minimise.float64_on_cpu():
        columns = {name: jnp.asarray(column) for name, column in data.items()}

        def law(x, data):
            return laws.log_supervised(laws.Supervised(*jnp.exp(x[:3]), *x[3:]), data["N"], data["D"])

        def value(x):
            return scale * DELTA**2 * newton.objective(law, x, columns, 1.0, DELTA)

        both = jax.jit(jax.value_and_grad(value))

        def seen(x):
            return tuple(np.asarray(part, np.float64) for part in both(jnp.asarray(x)))

        end = scipy.optimize.minimize(seen, start, jac=True, method="L-BFGS-B")
        return end, end.fun / scale


def test_default_tolerances_stop_where_hoffmanns_did(data):
    """Log A, log B, log E, alpha, beta from Hoffmann's digits: the mean stops at once, the sum hardly later."""
    start = [*np.log([406.4, 410.7, 1.6934]), 0.3392, 0.2849]
    end, value = scipys_end(data, start, 1 / len(data["N"]))
    assert end.success and end.nit <= 3 and value == pytest.approx(1.1718e-3, rel=0.02)
    np.testing.assert_allclose(np.exp(end.x[:2]), [406.4, 410.7], rtol=5e-3)
    _, value = scipys_end(data, start, 1.0)
    assert value == pytest.approx(1.1633e-3, rel=0.02)
    _, value = scipys_end(data, [10.0, 10.0, 0.0, 0.5, 0.5], 1.0)
    assert value > 1.02e-3


def test_any_27_starts_of_the_grid_reach_the_minimum(data):
    grid, form = forms.GAMMA_ONE.starts(), forms.GAMMA_ONE
    for seed in range(5):
        start = grid[np.random.default_rng(seed).choice(len(grid), 27, replace=False)]
        ends = minimise.minimise(form.law, data, DELTA, form.free_P, start, np.ones((27, len(data["N"]))))
        assert np.nanmin(ends.value_K) * DELTA**2 == pytest.approx(1.018274e-3, abs=1e-8)
