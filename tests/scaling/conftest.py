"""Sweeps made from a known law, for the tests of this room."""

import numpy as np
import pytest

from jaxdistill.scaling import laws, table

TRUTH = laws.Supervised(A=30.0, B=120.0, E=1.25, alpha=0.32, beta=0.38)
DISTILLED = laws.Distillation(A=9.0, B=150.0, alpha=0.25, beta=0.42, gamma=1.0, c0=1.0, kappa=1.8, f1=0.12)


def laptop_rows(noise=0.005, seed=0):
    """12 supervised and 12 distilled runs such as a laptop trains, with relative noise on every loss."""
    rng = np.random.default_rng(seed)
    points = [(N, 20 * N, "fixed-M 20") for N in (1e4, 4e4, 1e5, 2.5e5)]
    for budget, sizes in ((3e10, (1e4, 2.2e4, 5e4, 1.2e5)), (3e11, (4e4, 1e5, 2e5, 4e5))):
        points += [(N, budget / (3 * forward(N)), f"isoflop {budget:.0e}") for N in sizes]
    rows = []
    for N, D, protocol in points:
        loss = laws.supervised(TRUTH, N, D) * np.exp(noise * rng.standard_normal())
        rows.append(
            {"run": f"s{len(rows)}", "N": N, "D": D, "loss": loss, "protocol": protocol, "flops": 3 * forward(N) * D}
        )
    for N, ratio in ((1e4, 40), (4e4, 40), (1.2e5, 20)):
        for teacher in rows[:4]:
            D, L_T = N * ratio, teacher["loss"]
            loss = laws.distillation(DISTILLED, N, D, L_T, laws.supervised(TRUTH, N, D))
            loss *= np.exp(noise * rng.standard_normal())
            rows.append({"run": f"d{len(rows)}", "kind": "distilled", "N": N, "D": D, "loss": loss, "L_T": L_T})
            rows[-1] |= {"teacher": teacher["run"], "directory": f"runs/{len(rows)}", "flops": 3 * forward(N) * D}
    return rows


def forward(N):
    """FLOPs per token of a small model with 128 tokens of context and 512 words."""
    width = 16 * (N / 1e4) ** (1 / 3)
    return 2 * N + 4 * 128 * width + 2 * 512 * width


@pytest.fixture(scope="session")
def laptop():
    """The sweep with half a percent of noise."""
    return table.table(laptop_rows())
