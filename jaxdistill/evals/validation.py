"""Validation while a run trains: the student on the data, and its distance from the teacher."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Objective, Term


def objective(distilled: bool) -> Objective:
    """What is measured: cross-entropy on the data always, KL(teacher || student) where there is a teacher."""
    terms = {"cross_entropy": Term(CrossEntropy())}
    return Objective.of(terms | {"forward_kl": Term(ForwardKL())} if distilled else terms)


def evaluate(sums_of: Callable, params: Any, teacher_params: Any, batches: Iterable[Any]) -> dict[str, float]:
    """Means over all tokens of the batches, exact whatever their number, in nats per token."""
    parts = [sums_of(params, teacher_params, batch) for batch in batches]
    totals = {name: math.fsum(float(part[name]) for part in parts) for name in parts[0]}  # fp32 ends at 2^24 tokens
    return {name: total / totals["tokens"] for name, total in totals.items() if name != "tokens"} | {
        "tokens": totals["tokens"]
    }


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Cross-entropy per byte of text, in bits: comparable between tokenizers."""
    return nats_per_token / math.log(2) / bytes_per_token
