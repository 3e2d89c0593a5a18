"""The command line: verbs that parse, call and print.

Anything a user can mend is answered with one sentence and a non-zero exit; only our own faults show a traceback.
"""

import argparse
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.errors import InputError
from jaxdistill.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status: 0, 2 for bad input, 128 + signal when stopped."""
    from jaxdistill.run import Interrupted

    options = parser().parse_args(arguments)
    _cache_compilations()
    # A background writer that fails is asked for its error where its work is awaited; its own trace adds nothing.
    threading.excepthook = lambda failure: None
    try:
        options.verb(options)
    except InputError as error:
        return _complain(str(error), 2)
    except Interrupted as stop:
        return _complain(str(stop), 128 + stop.signal_number)
    except KeyboardInterrupt:
        return _complain("stopped; the same command continues", 128 + signal.SIGINT)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = error.filename or "the output directory"
            return _complain(f"no space left for {where}; free some and run the same command again", 2)
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return _complain(f"not allowed to use {error.filename}; change its permissions or choose another --out", 2)
        raise
    return 0


def _complain(sentence: str, status: int) -> int:
    print(f"jaxdistill: {sentence}", file=sys.stderr)
    return status


def _cache_compilations() -> None:
    """Keep compiled programs between runs: those of a sweep share many."""
    import jax

    from jaxdistill.data.storage import cache_root

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # it is only slower then


# ---------------------------------------------------------------------------------------------------------------------
# Verbs


def run(options: argparse.Namespace) -> None:
    """Train one experiment, or continue it."""
    from jaxdistill import config, rundir, sweep
    from jaxdistill import run as runner
    from jaxdistill.experiment import call

    target = Path(options.target)
    if target.is_dir():
        if options.overrides:
            raise InputError(f"{target} is a run directory, whose configuration is fixed; override an experiment file")
        patience = 60.0 if sweep.follow() else 0.0  # for the run of a killed sweep, which is saving
        runner.run(rundir.read_config(target), target, quiet=options.quiet, patience=patience)
        out = target
    else:
        experiment = sweep.override_all(call(target, "config", preset=options.preset), options.overrides)
        if options.dry_run:
            print(config.text(experiment), end="")
            return
        out = Path(options.out or Path("runs") / target.stem)
        for name, point in sweep.with_teachers({out.name: experiment}).items():
            runner.run(point, out.parent / name, experiment_file=target, quiet=options.quiet)
    if not options.quiet:
        result = rundir.read_result(out)
        print(f"loss {result['loss']:.4f} nats/token, {result['bits_per_byte']:.4f} bits/byte: {out}")


def sweep(options: argparse.Namespace) -> None:
    """Run every point of an experiment's sweep()."""
    from jaxdistill import sweep as sweeps
    from jaxdistill.experiment import call

    target = Path(options.target)
    points = call(target, "sweep", preset=options.preset)
    points = {name: sweeps.override_all(point, options.overrides) for name, point in points.items()}
    out = Path(options.out or Path("runs") / target.stem)
    if options.dry_run:
        for point in sweeps.plan(points, out):
            print(f"{point.name:32s} {sweeps.cost(point.experiment):9.2e} FLOPs  {point.experiment.protocol}")
        return
    table = sweeps.sweep(points, out, experiment_file=target, processes=options.processes, quiet=options.quiet)
    if not options.quiet:
        print(f"all runs finished: {table}; fit them with: jaxdistill fit {out}")


def fit(options: argparse.Namespace) -> None:
    """Fit scaling laws to a sweep and write the report."""
    from rich.console import Console

    from jaxdistill import analysis
    from jaxdistill.scaling import Settings, report

    target = Path(options.target)
    if not target.exists():
        raise InputError(f"there is no sweep directory or table {target}")
    table = analysis.write_table(target) if target.is_dir() else target
    out = Path(options.out) if options.out else target if target.is_dir() else target.with_suffix("")
    settings = Settings(delta=options.delta, resamples=options.resamples, seed=options.seed)
    with Console(stderr=True, quiet=options.quiet).status("fitting and drawing"):
        written = report.write(table, out, settings)
    for found in written.fits:
        print(report.summary(found), end="\n\n")
    print(f"open {written.paths[-1]}")


def allocate(options: argparse.Namespace) -> None:
    """Plan a distillation project: the best student for given compute, with and without a teacher."""
    from jaxdistill.scaling import allocate as planner
    from jaxdistill.scaling import allocation_figures, basis, recipe
    from jaxdistill.scaling.crossover import compare
    from jaxdistill.scaling.scenarios import named

    def given(name: str) -> float | None:
        text = getattr(options, name)
        return None if text is None else recipe.number(text, f"--{name.replace('_', '-')}")

    scenario = named(options.scenario).shared_by(options.students)
    compute = recipe.number(options.compute, "--compute")
    question = planner.Question(scenario, given("student"), given("teacher"), given("teacher_tokens"))
    figure = allocation_figures.check(Path(options.figure)) if options.figure else None
    law = basis.load(options.law)
    plan = planner.allocate(law, question, compute)
    compared = compare(plan, options.students)
    print(recipe.as_json(plan, compared) if options.json else recipe.summary(plan, compared))
    if figure:
        allocation_figures.save(allocation_figures.of(law, question), figure)


def diff(options: argparse.Namespace) -> None:
    """Print the fields in which two experiments differ."""
    from jaxdistill import config, rundir
    from jaxdistill.experiment import call

    def resolve(target: str):
        return rundir.read_config(Path(target)) if Path(target).is_dir() else call(target, "config")

    for path, left, right in config.diff(resolve(options.a), resolve(options.b)):
        print(f"{path or 'experiment'}: {left} -> {right}")


# ---------------------------------------------------------------------------------------------------------------------
# Parsing


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="jaxdistill", description="Distil language models in JAX.")
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(function, example: str, **more) -> argparse.ArgumentParser:
        summary = function.__doc__.strip()
        added = verbs.add_parser(
            function.__name__,
            help=summary,
            description=summary,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(verb=function)
        return added

    def experiment_options(added: argparse.ArgumentParser, where: str) -> None:
        added.add_argument("overrides", nargs="*", metavar="path=value", help="change a field, such as optim.peak=3e-3")
        added.add_argument("--out", help=f"{where} (default: runs/<name of the file>)")
        added.add_argument("--preset", help="passed to the experiment file, where it knows presets")
        added.add_argument("--quiet", action="store_true", help="no progress view")
        added.add_argument("--dry-run", action="store_true", help="show what would run, and stop")

    added = verb(run, "jaxdistill run experiments/distill.py optim.peak=3e-3 --out runs/mine")
    added.add_argument("target", help="an experiment file, or a run directory to continue")
    experiment_options(added, "the run directory")

    added = verb(sweep, "jaxdistill sweep experiments/scaling_law.py --preset laptop")
    added.add_argument("target", help="an experiment file with sweep()")
    experiment_options(added, "the sweep directory")
    added.add_argument("--processes", type=int, help="runs at a time (default: one a GPU, or one a core)")

    added = verb(fit, "jaxdistill fit runs/scaling_law")
    added.add_argument("target", help="a sweep directory, or a CSV table with the columns N, D and loss")
    added.add_argument("--out", help="where to write (default: the sweep directory, or beside the table)")
    added.add_argument("--delta", type=float, default=5e-3, help="Huber threshold in log loss; the paper has 1e-4")
    added.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    added.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    added.add_argument("--quiet", action="store_true", help="no progress view")

    added = verb(allocate, "jaxdistill allocate --student 3B --compute 1e22 --scenario teacher-inference")
    added.add_argument("--compute", required=True, help="FLOPs for one student, its teacher's share included: 1e22")
    added.add_argument(
        "--scenario", default="both", help="best-case, teacher-inference, teacher-pretraining or both (default: both)"
    )
    added.add_argument("--student", help="its parameters without embeddings, such as 3B (default: the best size)")
    added.add_argument("--teacher", help="parameters of a teacher that is given (default: the best size)")
    added.add_argument("--teacher-tokens", help="tokens a teacher has seen, or will (default: the best number)")
    added.add_argument("--students", type=int, default=1, help="equal students that share teacher and cached logits")
    added.add_argument(
        "--law", default="published", help="published, printed, a sweep directory or a CSV table (default: published)"
    )
    added.add_argument("--figure", metavar="FILE", help="draw crossovers, or contours without --student: svg, pdf, png")
    added.add_argument("--json", action="store_true", help="print the recipe as JSON")

    added = verb(diff, "jaxdistill diff experiments/distill.py experiments/mine.py")
    added.add_argument("a", help="an experiment file or run directory")
    added.add_argument("b", help="another one")
    return top
