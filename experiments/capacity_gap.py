"""Can a teacher be too good for its student? The smallest example, which trains nothing.

    python experiments/capacity_gap.py runs/capacity_gap     # seconds

The kernel regression of "Distillation Scaling Laws" (arXiv 2502.08606, appendix C), everything in closed form: the
truth is a sum of orthonormal functions, the teacher the closest sum of the first m of them in a ball, the student the
closest sum of the first n to the teacher in a smaller ball. Expected: more functions of the teacher help its student up
to n, change nothing for a while, and then harm it: the teacher spends its norm on what the student cannot follow.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill import rundir
from jaxdistill.evals.figures import svg
from jaxdistill.scaling import page
from jaxdistill.scaling.style import canvas, in_style, styles

FUNCTIONS, TEACHER_NORM, STUDENT_NORM = 1000, 5.0, 4.5
STUDENTS = (300, 400, 500, 600, 700, 800)  # functions of a student


def student_error(alpha: np.ndarray, m: np.ndarray, n: int, T: float = TEACHER_NORM, D: float = STUDENT_NORM) -> Any:
    """||f - h||, how far a student is from the truth f = sum_i alpha_i phi_i, for orthonormal phi.

    The teacher g is the function closest to f in the span of the first m with ||g|| <= T: C times the first m terms of
    f, where C = min(1, T / ||first m terms||). The student h is the closest to g in the span of the first n with
    ||h|| <= D: Q times the first k = min(m, n) terms of g. So, with S_k = sum_{i <= k} alpha_i^2,

        ||f - h||^2 = (C Q - 1)^2 S_k + S_all - S_k,    Q = min(1, D / (C sqrt(S_k))).

    Args:
      alpha: coefficients of f.
      m: functions of the teacher, integers of any shape, at least 1.
      n: functions of the student.
      T, D: largest norms of teacher and student.
    """
    squares = np.cumsum(alpha**2)
    S_m, S_k = squares[np.asarray(m) - 1], squares[np.minimum(m, n) - 1]
    C = np.minimum(1, T / np.sqrt(S_m))
    Q = np.minimum(1, D / (C * np.sqrt(S_k)))
    return np.sqrt((C * Q - 1) ** 2 * S_k + squares[-1] - S_k)


def best(error: np.ndarray) -> int:
    """The place of the smallest teacher under which the error is least, up to rounding."""
    return int(np.flatnonzero(error <= error.min() + 1e-9)[0])


@in_style
def figure(m: np.ndarray, errors: dict[int, np.ndarray]) -> Any:
    """Students' errors over the functions of their teacher, a ring at the least."""
    drawing, panel = canvas(5.6, 3.8)
    for (n, error), (colour, _) in zip(errors.items(), styles(len(errors)), strict=True):
        panel.plot(m, error, color=colour, label=f"{n} functions")
        panel.plot(m[best(error)], error.min(), "o", color=colour, markersize=9, markerfacecolor="none")
    panel.set(xlabel="functions of the teacher", ylabel="distance of the student from the truth")
    panel.legend(title="student", alignment="left")
    return drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory for capacity_gap.csv and capacity_gap.svg")
    directory = parser.parse_args().out
    directory.mkdir(parents=True, exist_ok=True)
    alpha, m = np.random.default_rng(0).uniform(-1, 1, FUNCTIONS), np.arange(1, FUNCTIONS + 1)
    errors = {n: student_error(alpha, m, n) for n in STUDENTS}
    rows = [
        {
            "student": n,
            "error under 1": f"{error[0]:.4g}",
            "best teacher": m[best(error)],
            "error under it": f"{error.min():.4g}",
            f"error under {FUNCTIONS}": f"{error[-1]:.4g}",
        }
        for n, error in errors.items()
    ]
    rundir.write_atomically(directory / "capacity_gap.csv", page.csv_of(rows))
    rundir.write_atomically(directory / "capacity_gap.svg", svg(figure(m, errors)))


if __name__ == "__main__":
    main()
