"""Scaling laws: read a table of runs, fit the laws, say what the runs identify, draw it, report it; plan with a law.

    table.read -> fit_supervised, fit_distillation -> figures -> report.write
    basis.load -> allocate.allocate, crossover.crossover -> allocation_figures, recipe; suggest.choose

Letters of this room, which the laws take from their papers: N parameters and D tokens, whatever dims.py says; an array
ends in R (runs), P (parameters of a law) or K (many fits at once: starts, bootstrap resamples).
"""

from jaxdistill.scaling import allocate, basis, crossover, figures, flops, laws, report, scenarios, table
from jaxdistill.scaling.fit import Fit, NotIdentified, fit_distillation, fit_supervised
from jaxdistill.scaling.laws import Distillation, Supervised, distillation, supervised
from jaxdistill.scaling.regression import PAPER_DELTA, Settings

__all__ = [
    "PAPER_DELTA",
    "Distillation",
    "Fit",
    "NotIdentified",
    "Settings",
    "Supervised",
    "allocate",
    "basis",
    "crossover",
    "distillation",
    "figures",
    "fit_distillation",
    "fit_supervised",
    "flops",
    "laws",
    "report",
    "scenarios",
    "supervised",
    "table",
]
