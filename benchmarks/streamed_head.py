"""What does the streamed loss cost, and save, against forming all logits and against recomputing them?

    python benchmarks/streamed_head.py                  # two cores, fp32, half an hour
    python benchmarks/streamed_head.py --sizes small    # the same with fewer sizes, minutes
    python benchmarks/streamed_head.py --sizes gpu      # one accelerator, bf16, N = 8192, D = 4096, V = 128256

Each alternative is one jitted value and gradient (dh and dW) of a mean loss over B x L tokens:

    full       logits -> log_softmax -> mean, as most training code has it
    optax      the same logits into optax's loss
    recompute  the streamed loss's chunks under jax.checkpoint: logits are formed again in the backward pass
    streamed   losses.linear_heads: gradients are formed with the logits

Expected before measuring. Time in matmul passes of 2 N D V FLOP: full and streamed 3, recompute 4; a chunk that stays
in the cache should make up for the extra reading of W, so streamed ~ full and recompute ~ 4/3 of it; a KL has one pass
more everywhere, two more with recompute. Memory: full grows as N V, streamed as a chunk and dW alone, flat in L.

Times are the least of several rounds in which the alternatives take turns, since the machine may be shared. Temporary
memory is what XLA allots beyond inputs and outputs, known once a program is compiled. Growth is how far the memory of a
fresh process rises above its inputs during one call, its results taken off: so h, W, dh and dW are in neither, but for
the copy of dh and dW that the streamed loss keeps from its forward pass for its backward pass.
"""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import report

from jaxdistill.head import Head
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.linear_heads import api
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.targets import Dense

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
      batch, width, dtype: B, D (and C), and the type of h and W.
      vocabularies, lengths: every pair is compiled, for its temporary memory.
      grown, timed: pairs (V, L) that also run, in fresh processes and side by side.
      rounds: of the timing.
      chunks: tokens in a chunk, for the table of chunk sizes.
    """

    batch: int
    width: int
    dtype: str
    vocabularies: tuple[int, ...]
    lengths: tuple[int, ...]
    grown: tuple[tuple[int, int], ...]
    timed: tuple[tuple[int, int], ...]
    rounds: int
    chunks: tuple[int, ...]


SIZES = {
    "small": Sizes(
        batch=1,
        width=128,
        dtype="float32",
        vocabularies=(2048, 32_768),
        lengths=(128, 512, 2048),
        grown=((32_768, 128), (32_768, 512), (32_768, 2048)),
        timed=((2048, 512), (32_768, 512)),
        rounds=3,
        chunks=(64, 128, 256, 512),
    ),
    "cpu": Sizes(
        batch=1,
        width=128,
        dtype="float32",
        vocabularies=(2048, 32_768, 151_936),
        lengths=(128, 512, 2048, 8192),
        grown=((32_768, 128), (32_768, 512), (32_768, 2048), (151_936, 512)),
        timed=((2048, 512), (2048, 2048), (32_768, 512), (32_768, 2048), (151_936, 512)),
        rounds=4,
        chunks=(16, 64, 128, 256, 512, 1024),
    ),
    "gpu": Sizes(
        batch=4,
        width=4096,
        dtype="bfloat16",
        vocabularies=(128_256,),
        lengths=(128, 512, 2048, 8192),
        grown=((128_256, 128), (128_256, 512), (128_256, 2048)),
        timed=((128_256, 512), (128_256, 2048)),
        rounds=10,
        chunks=(1024, 2048, 4096, 8192),
    ),
}
LOSSES = {"cross-entropy": CrossEntropy(), "forward KL": ForwardKL()}


# The alternatives: (loss, head, target) -> fp32 scalar.


def full(loss, head, target):
    log_q_BLV = jax.nn.log_softmax(head.logits())
    if isinstance(loss, CrossEntropy):
        return -jnp.take_along_axis(log_q_BLV, target.label_BL[..., None], axis=-1).mean()
    log_p_BLV = jax.nn.log_softmax(target.head.logits())
    return jnp.sum(jnp.exp(log_p_BLV) * (log_p_BLV - log_q_BLV), axis=-1).mean()


def with_optax(loss, head, target):
    z_BLV = head.logits()
    if isinstance(loss, CrossEntropy):
        return optax.softmax_cross_entropy_with_integer_labels(z_BLV, target.label_BL).mean()
    log_q_BLV, log_p_BLV = jax.nn.log_softmax(z_BLV), jax.nn.log_softmax(target.head.logits())
    return optax.losses.kl_divergence_with_log_targets(log_q_BLV, log_p_BLV).mean()


def recompute(loss, head, target):
    batch, length, _ = head.h_BLD.shape
    chunks = -(-length // api.default_positions(batch, length))
    pad = chunks * -(-length // chunks) - length

    def cut(x):
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, chunks, -1, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def chunk(total, here):
        h_BLD, teacher_BLD, label_BL, weight_BL = here
        teacher = dataclasses.replace(target.head, h_BLD=teacher_BLD)
        loss_BL = loss(dataclasses.replace(head, h_BLD=h_BLD).logits(), Dense(label_BL, teacher))
        return total + jnp.sum(weight_BL * loss_BL), None

    arrays = (head.h_BLD, target.head.h_BLD, target.label_BL, jnp.ones((batch, length)))
    total, _ = jax.lax.scan(chunk, jnp.float32(0), jax.tree.map(cut, arrays))
    return total / (batch * length)


def streamed(loss, head, target, positions=None):
    objective, weight_BL = Objective.of({"loss": Term(loss)}), jnp.ones(target.label_BL.shape)
    total, _ = api.weighted_sum(objective, head, target, weight_BL, {"loss": 1.0}, positions=positions)
    return total / weight_BL.size


ALTERNATIVES = {"full": full, "optax": with_optax, "recompute": recompute, "streamed": streamed}


# Measuring.


def inputs(sizes: Sizes, vocabulary: int, length: int):
    """((h_BLD, w_VD), teacher's, label_BL): random, with logits of unit variance."""
    rng, dtype = np.random.default_rng(0), jnp.dtype(sizes.dtype)

    def head():
        h_BLD = rng.standard_normal((sizes.batch, length, sizes.width), np.float32)
        w_VD = rng.standard_normal((vocabulary, sizes.width), np.float32) / np.float32(sizes.width**0.5)
        return jnp.asarray(h_BLD, dtype), jnp.asarray(w_VD, dtype)

    return head(), head(), jnp.asarray(rng.integers(vocabulary, size=(sizes.batch, length)), jnp.int32)


def compiled(alternative, loss, arguments):
    """Value and gradient in (h_BLD, w_VD), compiled for these arguments."""

    def mean(student, teacher, label_BL):
        head, target_head = (Head(h, w, vocab_size=len(w)) for h, w in (student, teacher))
        return alternative(loss, head, Dense(label_BL, target_head))

    return jax.jit(jax.value_and_grad(mean)).lower(*arguments).compile()


def memory_now() -> tuple[int, int]:
    """(bytes in use, highest since `forget_peak`) of the device, or of this process where the device is the host."""
    if stats := jax.devices()[0].memory_stats():
        return stats["bytes_in_use"], stats["peak_bytes_in_use"]
    status = pathlib.Path("/proc/self/status").read_text()
    return tuple(int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 for name in ("VmRSS", "VmHWM"))


def forget_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def growth(sizes: Sizes, name: str, loss: str, vocabulary: int, length: int) -> float:
    """MiB by which the memory in use peaks above the inputs and results of one call."""
    arguments = inputs(sizes, vocabulary, length)
    program = compiled(ALTERNATIVES[name], LOSSES[loss], arguments)
    jax.block_until_ready(arguments)
    forget_peak()
    before, _ = memory_now()
    results = jax.block_until_ready(program(*arguments))
    return (memory_now()[1] - before - sum(x.nbytes for x in jax.tree.leaves(results))) / MIB


def least_times(programs: dict, arguments, rounds: int) -> dict:
    """Seconds of the fastest of `rounds` calls each; the programs take turns."""
    times = {name: [] for name in programs}
    for name in programs:
        jax.block_until_ready(programs[name](*arguments))
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


def difference(programs: dict, arguments) -> float:
    """The largest relative difference of a gradient from that of the full logits: all must compute the same thing."""
    (_, reference), *others = (program(*arguments) for program in programs.values())
    norm = lambda tree: float(optax.tree.norm(tree))  # noqa: E731
    return max(norm(jax.tree.map(jnp.subtract, gradient, reference)) / norm(reference) for _, gradient in others)


# The tables.


def growth_table(sizes: Sizes) -> report.Table:
    rows = []
    for loss, (vocabulary, length) in report.progress(list(itertools.product(LOSSES, sizes.grown)), "growth"):
        grown = [report.in_fresh_process(growth, sizes, name, loss, vocabulary, length) for name in ALTERNATIVES]
        rows.append((loss, vocabulary, length, *(f"{mib:.0f}" for mib in grown)))
    return report.Table("Growth of a fresh process, MiB", ("loss", "V", "L", *ALTERNATIVES), rows)


def temp_table(sizes: Sizes) -> report.Table:
    rows = []
    cases = list(itertools.product(LOSSES, sizes.vocabularies, sizes.lengths))
    for loss, vocabulary, length in report.progress(cases, "temporary memory"):
        head = jax.eval_shape(lambda v=vocabulary, n=length: inputs(sizes, v, n))
        programs = [compiled(alternative, LOSSES[loss], head) for alternative in ALTERNATIVES.values()]
        temps = [program.memory_analysis().temp_size_in_bytes / MIB for program in programs]
        rows.append((loss, vocabulary, length, *(f"{mib:.1f}" for mib in temps)))
    return report.Table("Temporary memory, MiB", ("loss", "V", "L", *ALTERNATIVES), rows)


def time_table(sizes: Sizes) -> report.Table:
    rows = []
    for loss, (vocabulary, length) in report.progress(list(itertools.product(LOSSES, sizes.timed)), "time"):
        arguments = inputs(sizes, vocabulary, length)
        programs = {name: compiled(f, LOSSES[loss], arguments) for name, f in ALTERNATIVES.items()}
        times = least_times(programs, arguments, sizes.rounds)
        cells = [f"{1e3 * t:.1f} ({t / times['full']:.2f})" for t in times.values()]
        rows.append((loss, vocabulary, length, *cells, f"{difference(programs, arguments):.0e}"))
    columns = ("loss", "V", "L", *ALTERNATIVES, "gradients differ by")
    return report.Table("Time, ms (as a ratio to full)", columns, rows)


def chunk_table(sizes: Sizes) -> report.Table:
    """Where `api.CHUNK_TOKENS` comes from."""
    rows = []
    for vocabulary, length in report.progress(sizes.timed, "chunks"):
        arguments = inputs(sizes, vocabulary, length)
        variants = {n: functools.partial(streamed, positions=n // sizes.batch) for n in sizes.chunks}
        programs = {n: compiled(variant, CrossEntropy(), arguments) for n, variant in variants.items()}
        times = least_times(programs, arguments, sizes.rounds)
        default = sizes.batch * api.default_positions(sizes.batch, length)
        rows.append((vocabulary, length, *(f"{1e3 * times[n]:.1f}" for n in sizes.chunks), default))
    columns = ("V", "L", *(f"{n} tokens" for n in sizes.chunks), "default")
    return report.Table("Streamed cross-entropy by size of a chunk, ms", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", choices=SIZES, default="cpu")
    sizes = SIZES[parser.parse_args().sizes]
    # Fresh processes first: on a GPU this one would hold the memory they need.
    tables = [growth_table(sizes), temp_table(sizes), time_table(sizes), chunk_table(sizes)]
    notes = f"B = {sizes.batch}, D = C = {sizes.width}, {sizes.dtype}; times: least of {sizes.rounds} interleaved calls"
    report.write("streamed_head", notes, tables)


if __name__ == "__main__":
    main()
