"""The scores of the models between a student and its teacher, as a table and as a figure."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import rich.console
import rich.progress

from jaxdistill import data, evals, frozen, rundir
from jaxdistill.analysis import load_run
from jaxdistill.errors import InputError
from jaxdistill.evals.figures import svg
from jaxdistill.evals.texts import of_split
from jaxdistill.experiment import Experiment
from jaxdistill.interpolate.pair import Pair
from jaxdistill.models.surgery import layers
from jaxdistill.models.surgery.spliced import Plan, Spliced, plan, plan_of_teacher
from jaxdistill.models.surgery.truncate import config_of_layers
from jaxdistill.models.transformer import Config, Params
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.program import head_sharding, precision
from jaxdistill.scaling import page
from jaxdistill.scaling.style import COLOURS, INK, canvas, in_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Order = Literal["last", "first", "greedy"]
Row = dict[str, Any]
SCORES = ("loss", "forward_kl", "agreement", "acceptance", "ece")


class Scorer:
    """Scores of models spliced from a pair, on windows of the student's validation data; one compiled program."""

    def __init__(self, pair: Pair, windows: int | None = None, quiet: bool = False):
        run = load_run(pair.student, mesh=Mesh())
        experiment, mesh = run.experiment, Mesh().build()
        if not isinstance(experiment, Experiment):
            raise InputError(f"{pair.student} is an imported model and has no text to be measured on")
        dataset = data.prepare(experiment.data, quiet=quiet)
        self.pair, self._quiet, self._size = pair, quiet, -(-experiment.batch // mesh.size) * mesh.size
        self.text = of_split(dataset, "validation").at_most(windows or dataset.num_validation_windows)
        teacher, params = frozen.load(pair.teacher, experiment.dtype, run.tokenizer, mesh)
        spliced = Spliced(teacher.config, teacher.dtype, run.model.shard)
        sums = precision(experiment.dtype)(jax.jit(evals.make_sums(spliced, teacher, sharding=head_sharding(mesh))))
        both = {"student": run.params, "teacher": params}
        self._teacher = teacher
        self._place = lambda batch: jax.device_put(batch, rules.of_batch(batch, mesh))
        self._teacher_params, self._dtype = params, experiment.dtype
        self._spliced = lambda plan, batch: sums(both | {"plan": plan}, params, batch)

    def __call__(self, plan: Plan) -> dict[str, float]:
        """Means a token, of `SCORES`."""
        return self._means(functools.partial(self._spliced, plan))

    def _means(self, sums: Callable) -> dict[str, float]:
        found = evals.score(lambda batch: sums(self._place(batch)), self.text.batches(self._size))
        return {**found.mean, "ece": found.reliability["model"].ece}

    def track(self, items: Sequence[Any], what: str) -> Iterable[Any]:
        """The items with a progress bar, unless it was made quiet."""
        console = rich.console.Console(stderr=True)
        return rich.progress.track(items, what, console=console, transient=True, disable=self._quiet)

    def patched(self, subset: Sequence[int]) -> Row:
        """A row of the table: sizes and scores."""
        scores = self(plan(self.pair.keep, self.pair.num_layers, subset))
        return _row(self.pair.config(subset), scores, " ".join(map(str, sorted(subset))))

    def pruned(self, kept: Sequence[int]) -> Row:
        """The row of the teacher's layers `kept`, untrained."""
        config = config_of_layers(self.pair.teacher_config, kept)
        return _row(config, self(plan_of_teacher(kept, self.pair.num_layers)), "")

    def whole(self, config: Config, params: Params) -> Row:
        """The row of any model of the teacher's vocabulary; every shape compiles a program of its own."""
        model = dataclasses.replace(self._teacher, config=config)
        sums = precision(self._dtype)(jax.jit(evals.make_sums(model, self._teacher)))
        return _row(config, self._means(lambda batch: sums(params, self._teacher_params, batch)), "")


def _row(config: Config, scores: Mapping[str, float], replaced: str) -> Row:
    sizes = {"layers": config.num_layers, "N_total": config.num_params_total}
    return sizes | {name: scores[name] for name in SCORES} | {"replaced": replaced}


def curve(scorer: Scorer, order: Order = "last") -> list[Row]:
    """A row for each size from the student to the teacher, in which layers of the student are replaced in an order.

    "last" and "first" put the teacher's blocks back from its end or its beginning, as published; "greedy" takes, at
    each size, the block that lowers KL(teacher || model) most (KLPatch), and scores all candidates for that.
    """
    pair = scorer.pair
    if order != "greedy":
        return [scorer.patched(subset) for subset in scorer.track(pair.subsets(order), f"{order} blocks")]
    rows, chosen, left = [scorer.patched(())], (), set(pair.replaceable)
    for _ in scorer.track(range(len(left)), "greedy blocks"):
        tried = {i: scorer.patched((*chosen, i)) for i in sorted(left)}
        best = min(tried, key=lambda i: tried[i]["forward_kl"])
        rows, chosen, left = [*rows, tried[best]], (*chosen, best), left - {best}
    return rows


def naive(scorer: Scorer) -> list[Row]:
    """The untrained layers of the teacher that the last-first curve consists of, a row for each size."""
    pair = scorer.pair
    kept = [layers.origins(pair.keep, pair.num_layers, subset) for subset in pair.subsets("last")]
    return [scorer.pruned(own) for own in scorer.track(kept, "naive pruning")]


def lines(curves: Mapping[str, list[Row]]) -> Iterable[str]:
    """The table for a terminal."""
    form = "{curve:<14} {layers:>6} {N_total:>14,} {loss:>8.4f} {forward_kl:>8.4f} {acceptance:>8.3f}".format
    yield f"{'curve':<14} {'layers':>6} {'parameters':>14} {'loss':>8} {'KL':>8} {'accepted':>8}"
    for name, rows in curves.items():
        yield from (form(curve=name, **row) for row in rows)


def write(curves: Mapping[str, list[Row]], out: Path, name: str = "interpolation") -> list[Path]:
    """A table, a figure and a page called `name` (csv, svg, html) in a directory, each whole or not at all."""
    rows = [{"curve": label, **row} for label, own in curves.items() for row in own]
    drawing = svg(figure(curves))
    title = "Sizes between a student and its teacher"
    contents = {"csv": page.csv_of(rows), "svg": drawing, "html": page.of_rows(title, rows, {CAPTION: drawing})}
    out.mkdir(parents=True, exist_ok=True)
    for ending, content in contents.items():
        rundir.write_atomically(out / f"{name}.{ending}", content)
    return [out / f"{name}.{ending}" for ending in contents]


CAPTION = (
    "Loss and KL(teacher || model) over the number of parameters. Each point of a curve is a model that was never "
    "trained: the student at the left with ever more blocks of the teacher at the right. The loss is cut off where the "
    "first curve would have half of the height; the KL is logarithmic and leaves out the teacher, which has none."
)


@in_style
def figure(curves: Mapping[str, list[Row]]) -> "Figure":
    """Loss and KL over size, a line for each curve."""
    drawing, panels = canvas(9, 4.2, 1, 2)
    looks = zip(itertools.cycle((*COLOURS, INK)), itertools.cycle("os^DvPx*h"), strict=False)  # no pair comes twice
    for (name, rows), (colour, marker) in zip(curves.items(), looks, strict=False):
        for panel, key in zip(panels, ("loss", "forward_kl"), strict=True):
            points = [(row["N_total"], row[key]) for row in rows if key == "loss" or row[key] > 0]
            panel.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name)
    lowest = min(row["loss"] for rows in curves.values() for row in rows)
    highest = max(row["loss"] for row in next(iter(curves.values())))
    panels[0].set_ylim(lowest - 0.1 * (highest - lowest), min(panels[0].get_ylim()[1], 2 * highest - lowest))
    panels[1].set_yscale("log")
    for panel, label in zip(panels, ("validation loss, nats a token", "KL(teacher‖model), nats a token"), strict=True):
        panel.set_xlabel("parameters, embeddings included")
        panel.set_ylabel(label)
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return drawing
