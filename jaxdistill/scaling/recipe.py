"""A plan as people write and read it: numbers with suffixes in, a page of text or JSON out."""

import json
import math
import re
from typing import Any

from jaxdistill.errors import InputError
from jaxdistill.scaling.allocate import WORDS, Estimate, Plan
from jaxdistill.scaling.crossover import Comparison, Crossover
from jaxdistill.scaling.style import count

SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def number(text: str, what: str) -> float:
    """`3B`, `1.5T`, `20e9` or `1e22` as a float; `what` names it in errors.

    Raises:
      InputError: not a positive, finite number.
    """
    parts = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([KMBT]?)\s*", text, re.IGNORECASE)
    try:
        value = float(parts[1]) * SUFFIXES[parts[2].upper()] if parts else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{what} is {text!r}, and must be a positive number such as 3B, 1.5T or 1e22")
    return value


def summary(plan: Plan, compared: list[Comparison]) -> str:
    """The recipe, what it beats, the same compute in other scenarios, and what to doubt, for a terminal."""
    scenario, own, alone = plan.question.scenario, plan.allocation, plan.alone
    rows = [
        ("", "", "90 % interval"),
        *(_row(WORDS[name], getattr(own, name), _large) for name in ("N_S", "D_S", "N_T", "D_T")),
        _row("teacher loss", own.L_T, _loss),
        _row("student loss", own.loss, _loss),
        ("", "", ""),
        _row("supervised parameters", alone.N, _large),
        _row("supervised tokens", alone.D, _large),
        _row("supervised loss", alone.loss, _loss),
        _row("gain by distilling", plan.gain, _signed),
    ]
    lines = [
        f"{plan.compute:.3g} FLOPs in the scenario {scenario.name}: {scenario.meaning}",
        f"law: {plan.basis.name}",
        "",
        *(f"  {name:<23}{value:>9}   {interval}".rstrip() for name, value, interval in rows),
        "",
        f"{verdict(plan)} Losses are in nats per token.",
        f"Of the FLOPs, {_shares(plan)}.",
        "",
        *_table(compared),
        "",
        f"Intervals: {plan.basis.spread}.",
        *plan.basis.doubts,
        *(f"warning: {note}" for note in plan.notes),
    ]
    return "\n".join(lines)


def verdict(plan: Plan) -> str:
    """What to do, in a sentence."""
    if plan.gain.low > 0:
        return f"Distil: the student is expected to be better by {plan.gain.value:.4f}."
    if plan.gain.high < 0:
        return f"Train without a teacher: the supervised model is expected to be better by {-plan.gain.value:.4f}."
    return "The law does not tell which is better: the interval of the gain contains zero."


def as_json(plan: Plan, compared: list[Comparison]) -> str:
    """The same as an object; an estimate is [value, low, high], and infinity is the word `inf`."""
    content = {
        "law": plan.basis.name,
        "scenario": plan.question.scenario.name,
        "compute": plan.compute,
        "allocation": plan.allocation._asdict(),
        "supervised": plan.alone._asdict(),
        "gain": plan.gain,
        "shares": dict(zip(("student_training", "teacher_logits", "teacher_training"), plan.shares, strict=True)),
        "scenarios": {row.scenario.name: _comparison(row) for row in compared},
        "intervals": plan.basis.spread,
        "doubts": plan.basis.doubts,
        "warnings": plan.notes,
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)


def _comparison(row: Comparison) -> dict[str, Any]:
    worth = {"loss": row.plan.allocation.loss, "gain": row.plan.gain} if row.plan else {"loss": None, "gain": None}
    crossing = row.crossover
    return worth | ({"wins": crossing.wins, "supervised_from": crossing.supervised_from} if crossing else {})


def _finite(value: Any) -> Any:
    """Infinities, which JSON lacks, as words."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _row(name: str, found: Estimate, words: Any) -> tuple[str, str, str]:
    same = math.isclose(found.low, found.high, rel_tol=1e-6)
    return name, words(found.value), "" if same else f"{words(found.low)} to {words(found.high)}"


def _large(value: float) -> str:
    return count(value) if value < 1e15 else f"{value:.2g}"


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _shares(plan: Plan) -> str:
    names = ("student training", "teacher logits", "teacher training")
    return ", ".join(f"{share:.0%} {name}" for share, name in zip(plan.shares, names, strict=True) if share > 0)


def _table(compared: list[Comparison]) -> list[str]:
    lines = [f"  {'scenario':<21}{'student loss':>13}{'gain':>9}   supervised training is as good from"]
    for row in compared:
        worth = (
            f"{row.plan.allocation.loss.value:>13.4f}{row.plan.gain.value:>+9.4f}" if row.plan else f"{'unpaid':>22}"
        )
        crossing = _crossing(row.crossover) if row.crossover else "give --student to learn it"
        lines.append(f"  {row.scenario.name:<21}{worth}   {crossing}")
    return lines


def _crossing(crossing: Crossover) -> str:
    """`8e21 FLOPs (5e21 to 2e22)`, or in words where it is no number."""
    value, low, high = (_flops(end) for end in crossing.supervised_from)
    interval = f" (interval: {low} to {high})" if low != high else ""
    first = crossing.wins[0][0] if crossing.wins else 0.0
    later = f"; distilling wins only above {first:.2g}" if first else ""
    return f"{value}{interval}{later}"


def _flops(value: float) -> str:
    return "the start" if value == 0 else "never" if math.isinf(value) else f"{value:.2g} FLOPs"
