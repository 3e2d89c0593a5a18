"""Does the distillation of Llama fit a pod, and how fast might it be? The real steps, compiled without a chip.

    python benchmarks/plans.py                       # 18 compilations of minutes each: an hour and a half on two cores
    python benchmarks/plans.py --search 0 --cases 8b

Needs libtpu, as `jaxdistill plan` does. Answers are kept in runs/plans, so that the command goes on where it was
stopped; the page has those that are asked for. Every number is the compiler's, or an estimate from it by the
assumptions of `jaxdistill.planning.estimate`; nothing ran.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
from pathlib import Path

import report

from jaxdistill.errors import InputError
from jaxdistill.planning import compiling, estimate, search
from jaxdistill.planning import report as text
from jaxdistill.planning.advice import gib
from jaxdistill.planning.worker import Question

ANSWERS = Path("runs/plans")
FILE = "experiments/pod.py"
TOPOLOGIES = {"8b": "v5p-64", "70b": "v5p-512"}
CASES = [f"{size}{target}" for size in TOPOLOGIES for target in ("", "-top", "-draws")]
NAMES = {
    "8b": "Llama 3.1 8B to 3.2 1B",
    "70b": "Llama 3.1 70B to 8B",
    "": "whole distribution",
    "top": "top 50",
    "draws": "50 draws",
}


def question(case: str, *overrides: str) -> Question:
    return Question(FILE, TOPOLOGIES[case.partition("-")[0]], case, overrides)


def ask(question: Question) -> dict:
    """The answer, from disk where it was given before."""
    asked = json.dumps(dataclasses.asdict(question), sort_keys=True)
    file = ANSWERS / f"{hashlib.sha256(asked.encode()).hexdigest()[:12]}.json"
    if not file.exists():
        try:
            said = compiling.compile_step(question)
        except InputError as refusal:
            said = {"error": str(refusal)}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"question": json.loads(asked), "answer": said}, indent=1))
    said = json.loads(file.read_text())["answer"]
    if "error" in said:
        raise InputError(said["error"])
    return said


def plan_row(case: str) -> list:
    said, (size, _, target) = ask(question(case)), case.partition("-")
    start = [NAMES[size], NAMES[target], f"{said['topology']}, {said['devices']} chips"]
    if said["facts"] is None:
        return [*start, *[""] * 4, f"{gib(said['needed'])}: too much", *[""] * 5]
    arguments, facts, found = said["arguments"], said["facts"], estimate.of(said)
    return [
        *start,
        f"{said['tokens']:,}",
        gib(arguments["params"] + arguments["opt"]),
        gib(arguments["teachers"]),
        gib(facts["memory"]["temporary"]),
        f"{gib(said['needed'])} of {gib(said['available'])}",
        f"{facts['flops'] / 1e12:.0f}",
        f"{said['model_flops'] / said['devices'] / 1e12:.0f}",
        f"{facts['moved'] / 1e9:.0f}",
        f"{found.seconds:.2f} ({found.busy:.2f} + {found.exposed:.2f}, {found.hidden:.2f} hidden)",
        f"{found.mfu:.0%}",
    ]


def talk_rows(case: str) -> list[list]:
    facts = ask(question(case))["facts"]
    return [
        [case, line["kind"], line["axes"], f"{line['times']:.0f}", gib(line["sent"]), gib(line["largest"]),
         "yes" if line["overlaps"] else "no", text.seconds(line["seconds"])]
        for line in (facts["talk"] if facts else [])
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--search", type=int, default=12, help="settings to try for 8b (default: 12; 0 for none)")
    parser.add_argument("--processes", type=int, default=1, help="compilations at a time")
    options = parser.parse_args()
    cases = options.cases
    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        waiting = [pool.submit(ask, question(case)) for case in cases]
        said = [future.result() for future in report.progress(waiting, "Compiling")]
    tables = [
        report.Table(
            "Plans",
            ["models", "target", "topology", "tokens a step", "state", "teacher", "temporary", "in all", "TFLOP",
             "useful", "GB moved", "s a step", "MFU"],
            [plan_row(case) for case in cases],
        ),
        report.Table(
            "What a chip sends in a step",
            ["case", "kind", "along", "times", "sent", "largest array", "hidden", "at the peak"],
            [row for case in cases for row in talk_rows(case)],
        ),
    ]  # fmt: skip
    if options.search:
        found = search.search(question("8b"), options.search, processes=options.processes, ask=ask)
        columns = ["settings", "mesh", "memory of a chip", "a step", "MFU", "tokens/s"]
        tables.append(report.Table("8b on v5p-64: settings by estimated tokens/s", columns, map(text.row, found)))
    compiler = ", ".join(sorted({one["versions"]["compiler"] for one in said}))
    report.write("plans", f"compiled by {compiler}, not run; {text.ASSUMED}", tables)


if __name__ == "__main__":
    main()
