"""How long does a distillation fit of the paper's size take, and how long would SciPy's L-BFGS-B?

    python benchmarks/fit.py                  # both, one after the other, in one process
    python benchmarks/fit.py --starts 100 --resamples 256 --sample 4   # a small one

680 students after the design of arXiv 2502.08606v2, section 4.2, with 0.2 % of noise, all nine parameters free: the
best of 1000 starts, and 4096 bootstrap resamples restarted from it, at the paper's delta. SciPy gets the objective,
scaled so that its stopping rule means something, with JAX's gradient, compiled; `--sample` of the same starts and
resamples are timed and multiplied out, once for the one process that SciPy is, and once as if it shared all cores
without loss. The last row is all that `fit_distillation` does: five nested laws, each with its starts and every run
left out once, the resamples, and the held-out check.

Expected before measuring: under three minutes on two cores, and a tenth of SciPy's time or less; no start or resample
that SciPy ends lower on by more than rounding, and more starts at the best minimum.
"""

import argparse
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import report
import scipy.optimize

from jaxdistill.scaling import fit_distillation, forms, laws, minimise, newton, regression, table
from jaxdistill.scaling.flops import BUSBRIDGE_FAMILY, family_flops

ALONE, TRUTH = laws.BUSBRIDGE_SUPERVISED, laws.BUSBRIDGE_DISTILLATION_CALIBRATED
BUDGETS = (3e19, 1e20, 3e20, 1e21)
TEACHERS = (546e6, 975e6, 1.82e9, 2.72e9, 4.82e9, 7.75e9)
EXACT = {"ftol": 1e-15, "gtol": 1e-8, "maxiter": 5000, "maxfun": 20000}


def tokens(N: float, flops: float) -> float:
    return flops / (3 * family_flops(N, BUSBRIDGE_FAMILY))


def students() -> list[tuple[float, float, float, float]]:
    """(N_S, D_S, N_T, D_T) of 680 runs."""
    sizes, M = np.geomspace(143e6, 7.75e9, 9), (20, 40, 80, 160, 320)
    runs = [(N, tokens(N, C), N_T, 20 * N_T) for N_T in TEACHERS for C in BUDGETS for N in sizes]
    for C in BUDGETS:
        equal = np.geomspace(143e6, 7.75e9, 10)
        runs += [(N, 20 * N, N_T, tokens(N_T, C)) for N_T in equal for N in (198e6, 546e6, 975e6, 1.82e9)]
    fixed = (198e6, 266e6, *TEACHERS, 10e9, 12.6e9)
    runs += [(N, m * N, N_T, 20 * N_T) for N_T in fixed for N in (143e6, 198e6, 546e6, 975e6, 1.82e9) for m in M]
    weak = [(1.82e9, 546e6), (546e6, 1.82e9)]
    return runs + [(N, D, N_T, 20 * N_T) for N, N_T in weak for D in np.geomspace(8e9, 512e9, 27)]


def runs(noise: float = 0.002) -> table.Table:
    """The same as a table, with the losses that the published law gives them."""
    rng, rows = np.random.default_rng(0), []
    for N, D, N_T, D_T in students():
        L_T = laws.supervised(ALONE, N_T, D_T)
        loss = laws.distillation(TRUTH, N, D, L_T, laws.supervised(ALONE, N, D))
        loss *= np.exp(noise * rng.standard_normal())
        rows.append({"kind": "distilled", "N": N, "D": D, "L_T": L_T, "loss": loss})
    return table.table(rows)


def timed(function: Callable, *arguments):
    begun = time.perf_counter()
    answer = function(*arguments)
    return answer, time.perf_counter() - begun


def scipys(form, data, delta: float) -> Callable:
    """(start, weights) -> the objective where L-BFGS-B ends."""
    columns = {name: jnp.asarray(column) for name, column in data.items()}
    both = jax.jit(jax.value_and_grad(lambda theta, weight: newton.objective(form.law, theta, columns, weight, delta)))

    def end(start, weight) -> float:
        weight = jnp.asarray(weight)

        def seen(theta):
            value, gradient = both(theta, weight)
            return float(value), np.asarray(gradient)

        return scipy.optimize.minimize(seen, start, jac=True, method="L-BFGS-B", options=EXACT).fun

    return end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=4096)
    parser.add_argument("--sample", type=int, default=24, help="starts, and resamples, that SciPy is timed on")
    options = parser.parse_args()
    students, delta = runs(), regression.PAPER_DELTA
    alone = laws.supervised(ALONE, students["N"], students["D"])
    data = {name: students[name] for name in ("N", "D", "L_T")} | {"L_supervised": alone}
    data["log_loss"] = np.log(students["loss"])
    form, R = forms.distillation_forms(ALONE, with_c1=True)[-1], len(students)

    def ours(start_KP, weight_KR):
        return minimise.minimise(form.law, data, delta, form.free_P, start_KP, weight_KR)

    grid_KP, rng = form.starts(), np.random.default_rng(0)
    value_K, choosing = timed(minimise.values, form.law, data, delta, grid_KP)
    start_KP, ones_KR = grid_KP[np.argsort(value_K, kind="stable")[: options.starts]], np.ones((options.starts, R))
    found, starting = timed(ours, start_KP, ones_KR)
    best = found.theta_KP[found.value_K.argmin()]
    count_KR = rng.multinomial(R, np.full(R, 1 / R), size=options.resamples)
    drawn, resampling = timed(ours, np.tile(best, (options.resamples, 1)), count_KR)

    with minimise.float64_on_cpu():
        end = scipys(form, data, delta)
        end(best, ones_KR[0])  # compiles
        starts = rng.choice(options.starts, min(options.sample, options.starts), replace=False)
        their_starts, per_start = timed(lambda: np.array([end(start_KP[k], ones_KR[k]) for k in starts]))
        their_draws, per_draw = timed(lambda: np.array([end(best, count_KR[k]) for k in range(options.sample)]))
    theirs = per_start / len(starts) * options.starts + per_draw / options.sample * options.resamples

    settings = regression.Settings(delta=delta, starts=options.starts, resamples=options.resamples)
    _, whole = timed(fit_distillation, students, ALONE, settings)

    cores, total = len(os.sched_getaffinity(0)), choosing + starting + resampling
    time_rows = [
        ("ours: lowest points of the grid", len(grid_KP), f"{choosing:.1f}", ""),
        ("ours: starts, compilation included", options.starts, f"{starting:.1f}", ""),
        ("ours: resamples", options.resamples, f"{resampling:.1f}", ""),
        ("ours, all three", "", f"{total:.1f}", "1.0"),
        (
            "L-BFGS-B, starts and resamples",
            f"from {len(starts)} + {options.sample}",
            f"{theirs:.0f}",
            f"{theirs / total:.1f}",
        ),
        (f"the same on {cores} cores without loss", "", f"{theirs / cores:.0f}", f"{theirs / cores / total:.1f}"),
        ("ours: all of fit_distillation", "", f"{whole:.1f}", ""),
    ]
    rows = []
    for what, mine, other in (
        ("starts", found.value_K[starts], their_starts),
        ("resamples", drawn.value_K[: options.sample], their_draws),
    ):
        low = found.value_K.min() if what == "starts" else np.minimum(mine, other)
        reached = [f"{np.mean(ends <= low * (1 + 1e-6)):.0%}" for ends in (mine, other)]
        lost = " and ".join(str(np.sum(~np.isfinite(ends))) for ends in (mine, other))
        apart = (mine / other - 1)[np.isfinite(mine) & np.isfinite(other)]
        rows.append((what, *reached, lost, f"{apart.max():+.1e}", f"{apart.min():+.1e}"))
    report.write(
        "fit",
        f"{R} students, {form.free_P.sum()} free parameters, delta {delta:g}, noise 0.2 %",
        [
            report.Table("Seconds", ("what", "problems", "seconds", "of ours"), time_rows),
            report.Table(
                "Objectives on the same problems",
                (
                    "problems",
                    "ours at the lowest",
                    "L-BFGS-B at the lowest",
                    "not finite, ours and theirs",
                    "worst of ours / theirs - 1",
                    "best",
                ),
                rows,
            ),
        ],
    )


if __name__ == "__main__":
    main()
