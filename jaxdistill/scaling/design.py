"""Whether a set of runs can be fitted at all: one unit of loss, enough runs, not all along one line. In sentences."""

from collections.abc import Sequence

import numpy as np

from jaxdistill.scaling.forms import Form
from jaxdistill.scaling.table import Table


def too_few(runs: Table, design: Sequence[str], law: Form) -> str:
    """Why `law` cannot be fitted to so few distinct points of the `design` columns; empty if it can."""
    needed = int(law.free_P.sum()) + 2
    distinct = len(np.unique(np.stack([runs[name] for name in design]), axis=1).T) if len(runs) else 0
    if distinct >= needed:
        return ""
    return (
        f"the law {law.name} has {needed - 2} free parameters and needs {needed} finished runs that differ in "
        f"{', '.join(design)}; the table has {distinct}"
    )


def mixed(runs: Table) -> str:
    """Why losses of these runs cannot stand in one law: other tokens, or other text; empty if nothing says so."""
    for column, of, why in (
        ("tokenizer", "tokenizers", "nats per token of one are another unit than those of another"),
        ("validation", "validation sets", "losses on different text differ for reasons that no law knows"),
    ):
        groups = {value: runs["run"][runs[column] == value] for value in dict.fromkeys(runs[column]) if value}
        if len(groups) > 1:
            listed = "; ".join(
                f"{value}: {names[0] or 'a run'}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                for value, names in groups.items()
            )
            return f"the runs have {len(groups)} {of} ({listed}), and {why}: fit those of each by themselves"
    return ""


def one_line(runs: Table) -> str:
    """Why the law cannot be fitted where all runs lie along one line in (log N, log D); empty if they do not.

    Along such a line, equal tokens per parameter above all, one of the law's two terms can stand for the other.
    """
    design_R2 = np.stack([np.log(runs["N"]), np.log(runs["D"])], axis=1)
    spread = np.linalg.svd(design_R2 - design_R2.mean(axis=0), compute_uv=False) / np.sqrt(len(runs))
    if spread[1] > 0.05:
        return ""
    ratio = runs["D"] / runs["N"]
    what = f"the same D/N, about {np.median(ratio):.3g}" if np.std(np.log(ratio)) < 0.1 else "N and D on one line"
    return (
        f"all {len(runs)} runs have {what}, which cannot tell the parameter term from the data term; add an IsoFLOP "
        "profile, or several token counts at one size"
    )
