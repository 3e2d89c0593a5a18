"""Can a teacher be too good for its student? Small perceptrons whose task is to look something up.

    python experiments/mapping_problem.py runs/mapping_problem     # three minutes of one core

After the mapping problem of "Distillation Scaling Laws" (arXiv 2502.08606, appendix C). The inputs are symbols 0, 1, 2
as there; the rest is ours, for the paper leaves it open: the first two name the place of the label among nine others.
Widths are smaller than the paper's 128 to 512. Expected: a student's loss is least under a teacher neither too narrow
nor too wide, and KL(teacher || student) grows with the teacher.
"""

import argparse
import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdistill import rundir
from jaxdistill.evals.figures import svg
from jaxdistill.scaling import page
from jaxdistill.scaling.style import canvas, in_style, plain_log_ticks, styles

POINTER, SYMBOLS = 2, 3
PLACES = SYMBOLS**POINTER
TEACHERS, WIDTHS, TRIALS = (8, 16, 32, 64, 128), (16, 32), 4
BATCH, PEAK, LEAST_STEPS = 512, 3e-3, 1000


class Problem(NamedTuple):
    """A batch: one-hot inputs fp32 [B, I], labels int32 [B]."""

    x_BI: Array
    label_B: Array


def draw(key: Array, size: int = BATCH) -> Problem:
    """Symbols at random; the first POINTER of them, as a number, name the place of the label among the others."""
    symbols_BS = jax.random.randint(key, (size, POINTER + PLACES), 0, SYMBOLS)
    place_B = symbols_BS[:, :POINTER] @ SYMBOLS ** jnp.arange(POINTER)
    label_B = jnp.take_along_axis(symbols_BS[:, POINTER:], place_B[:, None], axis=1)[:, 0]
    return Problem(jax.nn.one_hot(symbols_BS, SYMBOLS).reshape(size, -1), label_B)


def init(key: Array, width: int) -> list[tuple[Array, Array]]:
    """(matrix, bias) of two hidden layers of one width and of the output."""
    sizes = ((POINTER + PLACES) * SYMBOLS, width, width, SYMBOLS)
    keys, shapes = jax.random.split(key, 3), list(itertools.pairwise(sizes))
    return [(jax.random.normal(k, s) * (2 / s[0]) ** 0.5, jnp.zeros(s[1])) for k, s in zip(keys, shapes, strict=True)]


def logits(params: list[tuple[Array, Array]], x_BI: Array) -> Array:
    """[B, SYMBOLS]."""
    for w, b in params[:-1]:
        x_BI = jax.nn.relu(x_BI @ w + b)
    return x_BI @ params[-1][0] + params[-1][1]


def cross_entropy(params: list[tuple[Array, Array]], batch: Problem) -> Array:
    """Mean loss on the labels, nats."""
    log_q_BV = jax.nn.log_softmax(logits(params, batch.x_BI))
    return -jnp.mean(jnp.take_along_axis(log_q_BV, batch.label_B[:, None], axis=1))


def forward_kl(params: list[tuple[Array, Array]], teacher: list[tuple[Array, Array]], x_BI: Array) -> Array:
    """Mean KL(teacher || student), nats."""
    log_p_BV, log_q_BV = (jax.nn.log_softmax(logits(own, x_BI)) for own in (teacher, params))
    return jnp.mean(jnp.sum(jnp.exp(log_p_BV) * (log_p_BV - log_q_BV), axis=1))


@functools.partial(jax.jit, static_argnums=0)
def train(width: int, key_K: Array, teachers: Any) -> Any:
    """Parameters of K perceptrons, a leading K on each array, trained on teachers as many, or on labels (None)."""
    return jax.vmap(functools.partial(train_one, width))(key_K, teachers)


def train_one(width: int, key: Array, teacher: Any) -> Any:
    """Parameters of a perceptron after 20 fresh inputs a parameter, or LEAST_STEPS batches of them."""
    of_init, of_data = jax.random.split(key)
    params = init(of_init, width)
    count = sum(x.size for x in jax.tree.leaves(params))
    steps = max(LEAST_STEPS, 20 * count // BATCH)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, PEAK, steps // 20, steps))

    def step(carry, number):
        params, state = carry
        batch = draw(jax.random.fold_in(of_data, number))

        def loss(params):
            return cross_entropy(params, batch) if teacher is None else forward_kl(params, teacher, batch.x_BI)

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[0][0]


def mapping_problem() -> list[dict[str, Any]]:
    """A row for every teacher, student and trial: the losses of both on 2^15 fresh inputs, and the KL between them."""
    held_out = draw(jax.random.key(10**6), 2**15)
    loss = jax.jit(jax.vmap(cross_entropy, (0, None)))
    apart = jax.jit(jax.vmap(forward_kl, (0, 0, None)))
    keys, rows = jax.vmap(jax.random.key)(jnp.arange(TRIALS)), []
    for teacher_width in TEACHERS:
        teacher = train(teacher_width, keys, None)
        of_teacher = loss(teacher, held_out)
        for width in WIDTHS:
            student = train(width, jax.vmap(jax.random.fold_in, (0, None))(keys, 1), teacher)
            found = of_teacher, loss(student, held_out), apart(student, teacher, held_out.x_BI)
            rows += [
                {"teacher": teacher_width, "student": width, "trial": trial, "L_T": t, "L_S": s, "KL": kl}
                for trial, (t, s, kl) in enumerate(np.asarray(found).T.tolist())
            ]
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# The report


@in_style
def figure(rows: list[dict[str, Any]]) -> Any:
    """Loss of students, and KL to their teacher, over its width: medians, and the middle half of the trials."""
    drawing, panels = canvas(7, 3.4, 1, 2)
    for panel, name, label in zip(panels, ("L_S", "KL"), ("student loss", "KL(teacher || student)"), strict=True):
        for width, (colour, marker) in zip(WIDTHS, styles(len(WIDTHS)), strict=True):
            values_WR = [
                [row[name] for row in rows if (row["teacher"], row["student"]) == (teacher, width)]
                for teacher in TEACHERS
            ]
            low, middle, high = np.percentile(values_WR, (25, 50, 75), axis=1)
            panel.plot(TEACHERS, middle, color=colour, marker=marker, label=f"width {width}")
            panel.fill_between(TEACHERS, low, high, color=colour, alpha=0.2, linewidth=0)
        panel.set(xscale="log", yscale="log", xlabel="width of the teacher", ylabel=f"{label}, nats")
        panel.set_xticks(TEACHERS, TEACHERS)
        panel.minorticks_off()
        plain_log_ticks(panel.yaxis)
    panels[0].legend(title="student", alignment="left")
    return drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory for mapping_problem.csv and mapping_problem.svg")
    directory = parser.parse_args().out
    directory.mkdir(parents=True, exist_ok=True)
    rows = mapping_problem()
    rundir.write_atomically(directory / "mapping_problem.csv", page.csv_of(rows))
    rundir.write_atomically(directory / "mapping_problem.svg", svg(figure(rows)))


if __name__ == "__main__":
    main()
