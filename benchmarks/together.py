"""Is it faster to train several runs of one shape together, vmapped over seeds and learning rates, than one by one?

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 taskset -c 0 python benchmarks/together.py    # as a sweep starts its runs

The step of experiments/scaling_law.py's laptop models, 8 x 128 tokens, supervised: alone, and K of them in one program
with parameters, moments, batches and rates of their own. Counted are CPU seconds a run and step, not the clock's, so
that other work on the machine matters little. The last column holds the losses of a run trained together with others,
against those of the same run alone.

Without large pages a step pays for its memory what it pays for its arithmetic, as soon as its buffers exceed the 32 MB
that malloc keeps: compare with GLIBC_TUNABLES unset.

Expected before measuring: small matrix products gain from being batched if the step is bound by calls and not by
arithmetic, which at 1024 tokens a step it is not, so about equal; and more memory traffic with K.
"""

import argparse
import dataclasses
import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import report

from jaxdistill.data import Batch
from jaxdistill.experiment import load_module
from jaxdistill.losses.objective import Objective
from jaxdistill.program import make_model
from jaxdistill.step import init_state, make_step

FILE = report.RESULTS.parents[1] / "experiments" / "scaling_law.py"
STEPS, ROUNDS = 6, 3


def random_batch(rows: int, length: int, vocabulary: int, seed: int) -> Batch:
    """Random ids, one document a row."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, (rows, length + 1)).astype(np.int32)
    position_BL = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return Batch(ids[:, :-1], ids[:, 1:], np.ones((rows, length), np.float32), np.ones_like(position_BL), position_BL)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(size: str, number: int) -> tuple[float, np.ndarray]:
    """(least CPU seconds a run and step of several rounds, losses [STEPS, K])."""
    preset = load_module(FILE).laptop()
    experiment = dataclasses.replace(preset.base, model=preset.sizes[size])
    model = make_model(experiment)
    step = make_step(model, experiment.optim, Objective.of(experiment.objective))
    coef = {name: np.float32(term.at(0, 1)) for name, term in experiment.objective.items()}
    keys = jax.vmap(jax.random.key)(jnp.arange(number))
    together = jax.jit(jax.vmap(step, in_axes=(0, None, 0, 0, None)), donate_argnums=0)
    shape = (experiment.batch, experiment.data.length, preset.sizes[size].vocab_size)
    own = [random_batch(*shape, seed) for seed in range(number)]
    batch = jax.tree.map(lambda *rows: jnp.stack(rows), *own)
    peaks = experiment.optim.peak * 2.0 ** -np.arange(number)
    rates = [dataclasses.replace(experiment.optim, peak=float(peak)).rates(100, 1000) for peak in peaks]
    rates = jax.tree.map(lambda *values: jnp.stack([jnp.float32(value) for value in values]), *rates)

    def train():
        state = jax.vmap(lambda key: init_state(model, experiment.optim, key))(keys)
        state, metrics = together(state, {}, batch, rates, coef)
        losses = [metrics["loss"]]
        begun = cpu()
        for _ in range(STEPS):
            state, metrics = together(state, {}, batch, rates, coef)
            losses.append(metrics["loss"])
        losses = np.asarray(jax.block_until_ready(losses))
        return (cpu() - begun) / STEPS / number, losses

    rounds = [train() for _ in range(ROUNDS)]
    return min(seconds for seconds, _ in rounds), rounds[-1][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=("d16", "d32", "d48", "d64"))
    parser.add_argument("--together", nargs="+", type=int, default=(2, 4, 8))
    options = parser.parse_args()
    rows = []
    for size in report.progress(options.sizes, "sizes"):
        found = {number: measure(size, number) for number in (1, *options.together)}
        alone, losses = found[1]
        apart = max(np.abs(others[:, 0] / losses[:, 0] - 1).max() for _, others in found.values())
        rows.append(
            (size, f"{1e3 * alone:.2f}", *(f"{found[n][0] / alone:.2f}" for n in options.together), f"{apart:.1e}")
        )
    columns = (
        "size",
        "alone, CPU ms a step",
        *(f"{n} together, of alone" for n in options.together),
        "losses differ by",
    )
    pages = os.environ.get("GLIBC_TUNABLES")
    report.write(
        "together" if pages else "together_small_pages",
        f"one core; least of {ROUNDS} rounds of {STEPS} steps; GLIBC_TUNABLES {pages or 'not set'}",
        [report.Table("CPU time", columns, rows)],
    )


if __name__ == "__main__":
    main()
