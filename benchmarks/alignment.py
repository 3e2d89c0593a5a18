"""What does a teacher with a tokenizer of its own cost a training step, beside its forward pass?

    python benchmarks/alignment.py --rounds 1              # 64 windows of 2048 tokens; a quarter of an hour
    python benchmarks/alignment.py --batch 16 --length 512

The student of `experiments/cross_tokenizer.py` on longer windows, eight micro-batches a batch. On the host: its batch
alone, and with the same text in the teacher's tokens and the chunks of both. On the device: a step on the text alone,
on the chunks alone, and on both. Asked for: an alignment below 5 % of a step.

And the memory that XLA plans for a step on both, beside its inputs and results, at two vocabularies and two lengths:
four windows, nothing is run. What grows with the vocabulary may not grow with the length as well, as logits would.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
import report

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import cross_tokenizer as experiments
from jaxdistill import data
from jaxdistill.across import Marks
from jaxdistill.align import Spelling
from jaxdistill.data import pairs
from jaxdistill.program import build, make_model

WORK = {"text alone": "ce", "chunks alone": "alm", "both": "alm+ce"}
ROWS = 8  # windows of a micro-batch
VOCABULARIES, LENGTHS, WINDOWS = (8192, 131_072), (256, 1024), 4  # of which memory is compared
MIB = 2**20


def milliseconds(call, rounds: int) -> float:
    """The median, after one that compiles and reads."""
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[1:])


def programs(name: str, kind: str, batch: int, length: int, vocabulary: int = 0):
    """(experiment, text alone, with the teacher's beside it, teachers, program) of an arm on windows of this size.

    A `vocabulary` is that of both models in place of their own: ids that no text has.
    """
    own = experiments.student(kind, name)
    tokens, teacher = dataclasses.replace(own.data, length=length, validation_windows=None), experiments.teacher()
    own = dataclasses.replace(own, data=tokens, batch=batch, accumulate=max(1, batch // ROWS), start=None)
    plain = data.prepare(tokens, quiet=True)
    other = data.prepare(teacher.data, quiet=True).tokenizer
    marks = [Marks.of(Spelling.of(t.token_bytes.of_id, {"eos": t.eos_id})) for t in (other, plain.tokenizer)]
    if vocabulary:
        own, teacher = (
            dataclasses.replace(e, model=dataclasses.replace(e.model, vocab_size=vocabulary)) for e in (own, teacher)
        )
        marks = [Marks(*(np.resize(ids, vocabulary) for ids in (m.is_boundary_V, m.is_special_V))) for m in marks]
    teachers = {} if own.teacher is None else {"teacher": make_model(teacher)}
    paired = pairs.pair(tokens, plain, other, quiet=True)
    return own, plain, paired, teachers, build(own, teachers, marks=(marks[0], marks[1]))


def step_of(name: str, batch: int, length: int, kind: str):
    """(a step of a fresh student as a call, its batch on the host with and without the teacher's text, as calls)."""
    own, plain, paired, teachers, program = programs(name, kind, batch, length)
    params = {name: jax.jit(model.init)(jax.random.key(1)) for name, model in teachers.items()}
    inputs = (paired if teachers else plain).batch(batch, 0, 0)
    rates, coef = own.optim.rates(0, 10), dict.fromkeys(own.objective, np.float32(1))
    holder = [program.init(jax.random.key(0))]

    def step():
        holder[0], metrics = program.step(holder[0], params, inputs, rates, coef)
        return metrics

    return step, lambda: plain.batch(batch, 0, 1).tokens_BL, lambda: paired.batch(batch, 0, 1).tokens_BL


def memory(vocabulary: int, length: int) -> float:
    """MiB that a step on both needs beside its inputs and results."""
    own, _, paired, teachers, program = programs("alm+ce", "bytes", WINDOWS, length, vocabulary)
    params = {name: jax.eval_shape(model.init, jax.random.key(0)) for name, model in teachers.items()}
    coef = dict.fromkeys(own.objective, np.float32(1))
    lowered = program.step.lower(program.abstract, params, paired.batch(WINDOWS, 0, 0), own.optim.rates(0, 10), coef)
    return lowered.compile().memory_analysis().temp_size_in_bytes / MIB


def of_memory() -> report.Table:
    """A row a vocabulary."""
    width, rows = experiments.teacher().model.width, []
    for vocabulary in report.progress(VOCABULARIES, "memory"):
        planned = [memory(vocabulary, length) for length in LENGTHS]
        grown = WINDOWS * (LENGTHS[1] - LENGTHS[0]) * vocabulary * 4 / MIB
        rows.append([vocabulary, *planned, planned[1] - planned[0], grown, vocabulary * width * 4 / MIB])
    columns = ["V", *(f"L = {length}" for length in LENGTHS), "difference", "that of all logits of one model", "V D"]
    shown = [[row[0], *(f"{x:.0f}" for x in row[1:])] for row in rows]
    return report.Table(f"memory of a step on both, MiB: {WINDOWS} windows", columns, shown)


def of_time(kind: str, batch: int, length: int, rounds: int) -> report.Table:
    """Steps, and what the host does for them."""
    calls = {name: step_of(arm, batch, length, kind) for name, arm in WORK.items()}
    steps = {name: milliseconds(call[0], rounds) for name, call in calls.items()}
    alone, paired = (milliseconds(call, 9) for call in calls["both"][1:])
    rows = [
        [f"step, {name}", f"{taken:.0f}", f"{taken / steps['text alone']:.2f}", ""] for name, taken in steps.items()
    ]
    for name, taken in {"batch alone": alone, "batch with the teacher's text": paired}.items():
        rows.append([name, f"{taken:.1f}", "", f"{100 * taken / steps['chunks alone']:.2f} %"])
    columns = ["", "ms", "of a step on the text", "of a step on chunks"]
    return report.Table(f"{kind}: {batch} windows of {length}", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    tables = [of_time(kind, options.batch, options.length, options.rounds) for kind in ("pieces", "bytes")]
    notes = f"medians of {options.rounds}; the teacher has pieces of its own in all of them"
    report.write("alignment", notes, [*tables, of_memory()])


if __name__ == "__main__":
    main()
