"""A plan as text: what fits, what takes the memory, what is sent, and how long a step may take."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxdistill.planning import estimate
from jaxdistill.planning.advice import gib
from jaxdistill.planning.facts import EFFICIENCY
from jaxdistill.planning.search import Tried

GROUPS = {"params": "parameters", "opt": "moments", "teachers": "frozen models", "batch": "batch"}
ASSUMED = (
    f"assumed: matmuls at {EFFICIENCY:.0%} of the peak, memory and links at theirs, instructions one after another; "
    "what is started and awaited apart is hidden behind them. An estimate: nothing ran."
)


def show(said: Mapping[str, Any], console: Console) -> None:
    """Print one plan."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in said["mesh"].items()) or "one device"
    console.print(f"{said['topology']}: {said['devices']} x {said['device']}, mesh {mesh}", highlight=False)
    console.print(_memory(said))
    if said["facts"] is None:
        return
    facts = said["facts"]
    if facts["talk"]:
        console.print(_talk(facts["talk"]))
    useful = said["model_flops"] / said["devices"]
    console.print(
        f"a step on a device: {facts['flops']:.3g} FLOPs of matmuls, of which {useful:.3g} are useful; "
        f"{facts['moved'] / 1e9:.4g} GB of memory traffic; {said['tokens']:,} tokens on all"
    )
    if facts["unknown_loops"]:
        console.print(f"{facts['unknown_loops']} loops of unknown length count once")
    console.print(timing(said))


def timing(said: Mapping[str, Any]) -> str:
    """The estimate in a sentence or two."""
    found = estimate.of(said)
    if found is None:
        return "no estimate of time: the peaks of this device are not known"
    return (
        f"about {seconds(found.seconds)} a step ({seconds(found.at_best)} if all communication were hidden): "
        f"{seconds(found.busy)} of instructions, {seconds(found.hidden)} sent behind them, {seconds(found.exposed)} "
        f"sent between them; MFU {found.mfu:.0%}, {found.tokens:,.0f} tokens/s\n{ASSUMED}"
    )


def verdict(said: Mapping[str, Any]) -> str | None:
    """Why a step does not run, in one sentence with the numbers; None where it fits."""
    if estimate.fits(said):
        return None
    helps = f"; what helps: {'; '.join(said['advice'])}" if said["advice"] else ""
    arguments = said["arguments"]
    if not said["compiled"]:
        return (
            f"the frozen models ({gib(arguments['teachers'])} a device) do not fit beside the student's state "
            f"({gib(arguments['params'] + arguments['opt'])}): {said['device']} has {gib(said['available'])}{helps}"
        )
    return f"the step needs {gib(said['needed'])} a device, and {said['device']} has {gib(said['available'])}{helps}"


def _memory(said: Mapping[str, Any]) -> Table:
    table = Table("memory of a device", "", "", title_justify="left")
    for name, size in said["arguments"].items():
        table.add_row(GROUPS[name], gib(size), "")
    if said["facts"] is not None:
        memory = said["facts"]["memory"]
        table.add_row("temporary", gib(memory["temporary"]), "")
        for array in said["facts"]["largest"]:
            table.add_row("  among it", gib(array["bytes"]), f"{array['shape']}  {place(array['where'])}")
        table.add_row("outputs beyond donated arguments", gib(memory["outputs"] - memory["reused"]), "")
        table.add_row("program", gib(memory["code"]), "")
    of = "" if said["available"] is None else f"of {gib(said['available'])}: "
    fits = "" if said["available"] is None else "fits" if estimate.fits(said) else "does not fit"
    table.add_row("in all", gib(said["needed"]), of + fits)
    return table


def _talk(lines: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("what is sent", "along", "times a step", "sent by a device", "largest array", "hidden", "at the peak")
    for line in lines:
        table.add_row(
            line["kind"], line["axes"], f"{line['times']:g}", gib(line["sent"]), gib(line["largest"]),
            "yes" if line["overlaps"] else "no", "-" if line["seconds"] is None else seconds(line["seconds"]),
        )  # fmt: skip
    return table


def place(where: str) -> str:
    """A place in the traced step as a reader knows it: who, and the last operation."""
    who = "backward" if "transpose(" in where else "student" if "jvp(" in where else "teacher, optimizer"
    return f"{who}: {re.sub(r'[()]', '', where.rpartition('/')[2])}" if where else ""


def seconds(value: float) -> str:
    """Seconds as text."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def ranking(tried: Sequence[Tried]) -> Table:
    """The settings of a search, the fastest that fit first."""
    table = Table("settings", "mesh", "memory of a device", "a step", "MFU", "tokens/s", title="by estimated tokens/s")
    for one in tried:
        table.add_row(*row(one))
    return table


def row(one: Tried) -> list[str]:
    """One line of a ranking."""
    settings = " ".join(one.overrides) or "as it is"
    if one.said is None:
        return [settings, "", "refused", one.refusal, "", ""]
    mesh = " x ".join(f"{axis} {size}" for axis, size in one.said["mesh"].items())
    memory, found = gib(one.said["needed"]), estimate.of(one.said)
    if not estimate.fits(one.said):
        return [settings, mesh, f"{memory}: too much", "", "", ""]
    if found is None:
        return [settings, mesh, memory, "", "", ""]
    return [settings, mesh, memory, seconds(found.seconds), f"{found.mfu:.0%}", f"{found.tokens:,.0f}"]
