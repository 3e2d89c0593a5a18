"""What does a teacher with a tokenizer of its own cost a training step, beside its forward pass?

    python benchmarks/alignment.py                     # 64 windows of 2048 tokens; minutes
    python benchmarks/alignment.py --batch 16 --length 512

The laptop student of `experiments/cross_tokenizer.py` on longer windows. On the host: its batch alone, and with the
same text in the teacher's tokens and the chunks of both. On the device: a step on the text alone, on the chunks alone,
and on both. Asked for: an alignment below 5 % of a step.
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

WORK = {"text alone": experiments.SFT, "chunks alone": experiments.ALM, "both": experiments.BOTH}


def milliseconds(call, rounds: int) -> float:
    """The median, after one that compiles and reads."""
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[1:])


def step_of(terms, batch: int, length: int, kind: str):
    """(a step of a fresh student as a call, its batch on the host with and without the teacher's text, as calls)."""
    experiment = experiments.student(kind, terms)
    tokens = dataclasses.replace(experiment.data, length=length)
    experiment = dataclasses.replace(experiment, data=tokens, batch=batch, start=None)
    plain = data.prepare(tokens, quiet=True)
    other = data.prepare(experiments.teacher().data, quiet=True).tokenizer
    paired = pairs.pair(tokens, plain, other, quiet=True)
    teacher = make_model(experiments.teacher())
    teachers = {"teacher": teacher} if "alm" in terms else {}
    marks = [Marks.of(Spelling.of(t.token_bytes.of_id, {"eos": t.eos_id})) for t in (other, plain.tokenizer)]
    program = build(experiment, teachers, marks=(marks[0], marks[1]))
    params = {name: jax.jit(model.init)(jax.random.key(1)) for name, model in teachers.items()}
    inputs = (paired if "alm" in terms else plain).batch(batch, 0, 0)
    rates, coef = experiment.optim.rates(0, 10), dict.fromkeys(experiment.objective, np.float32(1))
    holder = [program.init(jax.random.key(0))]

    def step():
        holder[0], metrics = program.step(holder[0], params, inputs, rates, coef)
        return metrics

    return step, lambda: plain.batch(batch, 0, 1).tokens_BL, lambda: paired.batch(batch, 0, 1).tokens_BL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    tables = []
    for kind in experiments.STUDENTS:
        calls = {name: step_of(terms, options.batch, options.length, kind) for name, terms in WORK.items()}
        steps = {name: milliseconds(call[0], options.rounds) for name, call in calls.items()}
        alone, paired = (milliseconds(call, 9) for call in calls["both"][1:])
        rows = [
            [f"step, {name}", f"{taken:.0f}", f"{taken / steps['text alone']:.2f}", ""] for name, taken in steps.items()
        ]
        for name, taken in {"batch alone": alone, "batch with the teacher's text": paired}.items():
            rows.append([name, f"{taken:.1f}", "", f"{100 * taken / steps['chunks alone']:.2f} %"])
        columns = ["", "ms", "of a step on the text", "of a step on chunks"]
        tables.append(report.Table(f"{kind}: {options.batch} windows of {options.length}", columns, rows))
    report.write("alignment", "medians; the teacher has pieces of its own in all of them", tables)


if __name__ == "__main__":
    main()
