"""The command line: verbs that parse, call and print.

Anything a user can mend is answered with one sentence and a non-zero exit; only our own faults show a traceback.
"""

import argparse
import errno
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.errors import InputError, Interrupted
from jaxdistill.launchers import options as launchers
from jaxdistill.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status: 0, 2 for bad input, 128 + signal when stopped."""
    from jaxdistill.parallel import hosts

    options = _parse(arguments)
    _cache_compilations()
    # A background writer that fails is asked for its error where its work is awaited; its own trace adds nothing, and
    # those of TensorStore's callbacks, errors in no object, would bury the sentence under a hundred lines.
    threading.excepthook = lambda failure: None
    sys.unraisablehook = lambda failure: None if failure.object is None else sys.__unraisablehook__(failure)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # what is left of such a write; we have none
    try:
        with hosts.job(_place(options), _answer):
            options.verb(options)
    except BaseException as error:
        if (answered := _answer(error)) is None:
            raise
        print(f"jaxdistill: {answered[0]}", file=sys.stderr)
        return answered[1]
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Overrides may stand anywhere; argparse itself takes those that stand together."""
    whole = parser()
    options, rest = whole.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(argument.startswith("-") for argument in rest)):
        whole.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _answer(error: BaseException) -> tuple[str, int] | None:
    """The sentence and the exit status for what a user can mend, or has asked for; None for a fault of ours."""
    match error:
        case InputError():
            return str(error), 2
        case Interrupted():
            return str(error), 128 + error.signal_number
        case KeyboardInterrupt():
            return "stopped; the same command continues", 128 + signal.SIGINT
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            where = error.filename or "the output directory"
            return f"no space left for {where}; free some and run the same command again", 2
        case OSError(errno=errno.EACCES | errno.EROFS | errno.EPERM):
            return f"not allowed to use {error.filename}; change its permissions or choose another --out", 2
    return None


def _place(options: argparse.Namespace):
    """Where this process stands among those of one run. InputError where several were started for another verb."""
    from jaxdistill.launchers import process
    from jaxdistill.parallel import places

    if process.LEASH in os.environ:  # a run of a sweep is one process, whatever has started the sweep
        return None
    if options.verb in (run, cache_build):
        return places.find(options.coordinator, options.processes, options.process)
    return places.refuse(options.verb.__name__.replace("_", " "))


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
    from jaxdistill import caching, config, rundir, sweep
    from jaxdistill import run as runner
    from jaxdistill.cache.recipe import Adopted, Recipe
    from jaxdistill.experiment import Experiment, call
    from jaxdistill.launchers import process
    from jaxdistill.parallel import together

    def work(point, directory: Path, **more) -> None:
        if isinstance(point, Adopted):
            raise InputError(f"{directory} is made of another system's cache: continue it with jaxdistill cache import")
        if not isinstance(point, Experiment | Recipe):
            raise InputError(f"{directory} holds a model that was imported: there is nothing to train in it")
        perform = runner.run if isinstance(point, Experiment) else caching.build
        perform(point, directory, quiet=quiet, **more)

    quiet = options.quiet or not together.is_first()

    target = Path(options.target)
    if target.is_dir():
        if options.overrides:
            raise InputError(f"{target} is a run directory, whose configuration is fixed; override an experiment file")
        patience = 60.0 if process.follow() else 0.0  # for the run of a killed sweep, which is saving
        work(rundir.read_config(target), target, patience=patience)
        out = target
    else:
        experiment = sweep.override_all(call(target, "config", preset=options.preset), options.overrides)
        if options.dry_run:
            print(config.text(experiment), end="")
            return
        out = Path(options.out or Path("runs") / target.stem)
        for name, point in sweep.with_sources({out.name: experiment}).items():
            work(point, out.parent / name, experiment_file=target)
    if not quiet and "bits_per_byte" in (result := rundir.read_result(out)):
        print(f"loss {result['loss']:.4f} nats/token, {result['bits_per_byte']:.4f} bits/byte: {out}")


def sweep(options: argparse.Namespace) -> None:
    """Run every point of an experiment's sweep()."""
    from jaxdistill import suggesting
    from jaxdistill import sweep as sweeps
    from jaxdistill.experiment import call
    from jaxdistill.launchers.options import chosen

    launcher = chosen(options)
    target, adaptive = Path(options.target), options.suggest is not None or options.suggested
    points = call(target, "candidates" if adaptive else "sweep", preset=options.preset)
    points = {name: sweeps.override_all(point, options.overrides) for name, point in points.items()}
    out = Path(options.out or Path("runs") / target.stem)
    if options.suggest is not None:
        return _suggest(points, out, options)
    if options.suggested:
        points = suggesting.suggested(points, out)
    if options.dry_run:
        for point in sweeps.plan(points, out):
            protocol = getattr(point.experiment, "protocol", "cache")
            print(f"{point.name:32s} {sweeps.cost(point.experiment):9.2e} FLOPs  {protocol}")
        return
    table = sweeps.sweep(points, out, experiment_file=target, launcher=launcher, quiet=options.quiet)
    if not options.quiet:
        print(f"all runs finished: {table}; fit them with: jaxdistill fit {out}")


def _suggest(points, out: Path, options: argparse.Namespace) -> None:
    from rich.console import Console

    from jaxdistill import suggesting
    from jaxdistill.scaling.recipe import number

    if options.suggest < 1:
        raise InputError(f"--suggest is {options.suggest}, and must be at least 1")
    compute = number(options.compute, "--compute") if options.compute else float("inf")
    with Console(stderr=True, quiet=options.quiet).status("fitting"):
        found = suggesting.suggest_runs(points, out, options.know, options.suggest, compute)
    for line in suggesting.lines(found):
        print(line)
    print(f"run them with: jaxdistill sweep {options.target} --out {out} --suggested; they are listed in {found.file}")


def plan(options: argparse.Namespace) -> None:
    """Compile an experiment's step for devices that need not be here: memory, communication, estimated time."""
    from rich.console import Console

    from jaxdistill.planning import answer
    from jaxdistill.planning.worker import Question

    if not Path(options.target).exists():
        raise InputError(f"there is no experiment file or run directory {options.target}")
    if wrong := [given for given in options.shape if given.count("=") != 1]:
        raise InputError(f"--shape {wrong[0]} is not ROLE=SIZE, such as teacher=llama3_1_8b")
    question = Question(
        options.target, options.topology, options.preset, tuple(options.overrides),
        dict(given.split("=") for given in options.shape), options.hlo,
    )  # fmt: skip
    quiet = Console(stderr=True, quiet=options.quiet)
    if options.search is None:
        answer.one(question, quiet, as_json=options.json)
    else:
        answer.many(question, options.search, options.processes, quiet, as_json=options.json)


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
    if written.set_aside:
        print(written.set_aside)
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


def report(options: argparse.Namespace) -> None:
    """Write the tables and figures that an experiment file makes of its sweep."""
    from jaxdistill.experiment import load_function

    directory = Path(options.directory or Path("runs") / Path(options.target).stem)
    make = load_function(options.target, "report")
    if not directory.is_dir():
        raise InputError(f"there is no sweep in {directory}: run jaxdistill sweep {options.target} first")
    for path in make(directory):
        print(path)


def cache_build(options: argparse.Namespace) -> None:
    """Run a teacher over its data once and keep what it says; trains the teacher first where it has to."""
    from jaxdistill import caching, config, rundir, sweep
    from jaxdistill import run as runner
    from jaxdistill.cache.recipe import Recipe
    from jaxdistill.experiment import call
    from jaxdistill.parallel import together

    target = Path(options.target)
    if target.is_dir():
        works = {target: rundir.read_config(target)}
    else:
        experiment = sweep.override_all(call(target, "config", preset=options.preset), options.overrides)
        out = Path(options.out or Path("runs") / target.stem)
        works = {out.parent / name: work for name, work in sweep.with_sources({out.name: experiment}).items()}
        works.pop(out)
    recipes = {directory: work for directory, work in works.items() if isinstance(work, Recipe)}
    if not recipes:
        raise InputError(f"{target} has no cache to build: its teacher is not Cached(...) of an experiment or a run")
    if options.dry_run:
        print("\n".join(f"{directory}\n{config.text(recipe)}" for directory, recipe in recipes.items()), end="")
        return
    file, quiet = None if target.is_dir() else target, options.quiet or not together.is_first()
    for directory, work in works.items():
        if isinstance(work, Recipe):
            part = _part(options.part) if options.part else None
            caching.build(work, directory, part=part, batch=options.batch, experiment_file=file, quiet=quiet)
        else:
            runner.run(work, directory, experiment_file=file, quiet=quiet)
    for directory in recipes:
        if not quiet and rundir.is_finished(directory):
            found = rundir.read_result(directory)
            print(f"{found['tokens']:,} tokens, {found['bytes_per_token']:.1f} bytes a token: {directory}")


def _part(text: str) -> tuple[int, int]:
    index, _, parts = text.partition("/")
    if not (index.isdigit() and parts.isdigit() and int(index) < int(parts)):
        raise InputError(f"--part {text} is not i/n with 0 <= i < n, such as 0/4")
    return int(index), int(parts)


def cache_verify(options: argparse.Namespace) -> None:
    """Read a cache again against its checksums, and score a sample of it again with its teacher."""
    from jaxdistill import caching

    found = caching.verify(options.directory, windows=options.windows, quiet=options.quiet)
    print(f"{found['shards']:.0f} shards are whole")
    if "overlap" in found:
        print(
            f"{found['windows']:.0f} windows scored again: {found['overlap']:.2%} of the mass agrees, stored numbers "
            f"are within {found['largest_difference']:.2g} nats"
        )
    elif options.windows:
        print("they are another system's targets, so there is no teacher here to score a sample with")


def cache_info(options: argparse.Namespace) -> None:
    """Print what a cache holds and what each part of it takes."""
    from rich.console import Console

    from jaxdistill import caching

    caching.show(Path(options.directory), Console(highlight=False))


def cache_slice(options: argparse.Namespace) -> None:
    """Write a smaller cache from a larger one, without the teacher."""
    from jaxdistill import caching, rundir

    out = caching.cut(options.directory, options.out, first=options.first, windows=options.windows, quiet=options.quiet)
    found = rundir.read_result(out)
    print(f"{found['tokens']:,} tokens, {found['bytes_per_token']:.1f} bytes a token: {out}")


def cache_import(options: argparse.Namespace) -> None:
    """Make a cache of what another system has kept of its teacher."""
    from jaxdistill import caching, rundir
    from jaxdistill.experiment import call

    file, out = Path(options.data), Path(options.out)
    caching.adopt(
        options.source, options.format, out, call(file, "config").data, resolution=options.resolution,
        experiment_file=file, quiet=options.quiet,
    )  # fmt: skip
    found = rundir.read_result(out)
    print(f"{found['tokens']:,} tokens, {found['bytes_per_token']:.1f} bytes a token: {out}")


def eval(options: argparse.Namespace) -> None:
    """Measure a run, an imported model or all of a sweep: losses, distance from the teacher, calibration, questions."""
    from jaxdistill import evaluate
    from jaxdistill.evals import tables

    request = evaluate.Request(
        split=options.split,
        windows=options.windows,
        others=options.ensemble,
        average=options.average,
        teacher=options.teacher,
        texts=dict(map(_named, options.text)),
        questions=options.questions,
        harness=options.lm_eval,
        harness_tasks=options.lm_eval_tasks,
        length=options.length,
        bins=options.bins,
    )
    records = evaluate.evaluate(options.target, request, quiet=options.quiet)
    if not options.quiet:
        tables.show(records)
    print(f"open {evaluate.write(records, Path(options.out or options.target))[-1]}")


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise InputError(f"{text!r} names no text: write it as name=path, such as news=news.jsonl")
    return name, path


def model_import(options: argparse.Namespace) -> None:
    """Make a run directory of a Hugging Face directory, for teachers and to start from."""
    from jaxdistill import exchange, rundir

    source = Path(options.source)
    out = Path(options.out or Path("imported") / source.absolute().name)
    imported = exchange.import_model(source, out, eos=options.eos)
    print(f"{imported.family}, {imported.model.num_params_total:,} parameters in {imported.dtype}: {out}")
    if change := rundir.read_result(out)["tokenizer_changes"]:
        print(change)


def model_export(options: argparse.Namespace) -> None:
    """Write a run as a Hugging Face directory, which transformers loads."""
    from jaxdistill import exchange

    print(f"{exchange.export_model(options.run, options.out)}: {options.out}")


def interpolate(options: argparse.Namespace) -> None:
    """Score every size between a student and the teacher it was cut from, or write one as a Hugging Face directory."""
    from jaxdistill.interpolate import curve, export, pair
    from jaxdistill.scaling.recipe import number

    keep = None if options.keep is None else tuple(map(int, options.keep.split(",")))
    found, order = pair.Pair.of(options.run, options.teacher, keep), options.order
    if options.size is None and options.layers is None:
        scorer = curve.Scorer(found, options.windows, options.quiet)
        curves = {"naive pruning": curve.naive(scorer), f"{order} blocks": curve.curve(scorer, order)}
        for line in curve.lines(curves):
            print(line)
        print(f"open {curve.write(curves, Path(options.out or options.run))[-1]}")
        return
    if order == "greedy" or options.out is None:
        raise InputError("one size needs --out DIR, and --order last or first, which need no scores")
    size = None if options.size is None else number(options.size, "--size")
    subset = pair.choose(found, order, size=size, depth=options.layers)
    architecture, count = export.export(found, subset, options.out), found.config(subset).num_params_total
    print(f"{architecture}, {found.depth(subset)} layers, {count:,} parameters: {options.out}")


def generate(options: argparse.Namespace) -> None:
    """Continue prompts with the model of a run, by its most probable tokens, or by draws where an option says how."""
    from jaxdistill import generating
    from jaxdistill.generate import Sampling

    how = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
    drawn = {name: value for name, value in how.items() if value is not None}
    prompts = [*options.prompt, *(generating.read(options.prompts) if options.prompts else [])]
    for text in generating.texts(
        options.target, prompts, options.tokens, Sampling(**drawn) if drawn else None, seed=options.seed,
        others=options.ensemble, average=options.average, quiet=options.quiet,
    ):  # fmt: skip
        print(json.dumps(text) if options.json else text["text"])


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

    def verb(function, example: str, among=verbs) -> argparse.ArgumentParser:
        summary = function.__doc__.strip()
        added = among.add_parser(
            function.__name__.rpartition("_")[2],
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

    def place_options(added: argparse.ArgumentParser) -> None:
        several = added.add_argument_group("several processes", "the same command for each; see docs/runs.md")
        several.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0 (default: as the cluster says)")
        several.add_argument("--processes", type=int, metavar="N", help="how many (default: as the cluster says, or 1)")
        several.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")

    added = verb(run, "jaxdistill run experiments/distill.py optim.peak=3e-3 --out runs/mine")
    added.add_argument("target", help="an experiment file, or a run directory to continue")
    experiment_options(added, "the run directory")
    place_options(added)

    added = verb(sweep, "jaxdistill sweep experiments/scaling_law.py --launcher ray --address auto --cpus-per-run 4")
    added.add_argument("target", help="an experiment file with sweep()")
    experiment_options(added, "the sweep directory")
    launchers.add(added)
    added.add_argument(
        "--suggest", type=int, metavar="K", help="choose the K next runs among the file's candidates(), and stop"
    )
    added.add_argument(
        "--know", metavar="WHAT", help="that they should narrow: N:D, N:D:L_T or a parameter (default: 10 x beyond)"
    )
    added.add_argument("--compute", metavar="FLOPs", help="of all suggested runs together (default: any)")
    added.add_argument("--suggested", action="store_true", help="run what --suggest has chosen last")

    added = verb(plan, "jaxdistill plan experiments/pod.py --topology v5p:2x4x4 mesh.tensor=4 --search 8")
    added.add_argument("target", help="an experiment file, or a run directory")
    added.add_argument("overrides", nargs="*", metavar="path=value", help="change a field, such as mesh.tensor=4")
    added.add_argument("--topology", required=True, help="v5p:2x4x4 or v5p-64, v5e:4x4, v6e:16x16, gpu:8, cpu:8")
    added.add_argument("--preset", help="passed to the experiment file, where it knows presets")
    added.add_argument(
        "--shape", action="append", default=[], metavar="ROLE=SIZE",
        help="of a model whose directory is not here: teacher=llama3_1_8b; repeat for more",
    )  # fmt: skip
    added.add_argument(
        "--search",
        nargs="?",
        type=int,
        const=12,
        metavar="N",
        help="compile up to N settings (12) and rank them",
    )
    added.add_argument("--processes", type=int, default=1, help="compilations at a time (default: 1)")
    added.add_argument("--hlo", metavar="FILE", help="write the compiled program's text")
    added.add_argument("--json", action="store_true", help="print what was found as JSON")
    added.add_argument("--quiet", action="store_true", help="no progress view")

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

    added = verb(report, "jaxdistill report experiments/sparse_kd.py runs/sparse_kd")
    added.add_argument("target", help="an experiment file with report()")
    added.add_argument("directory", nargs="?", help="of its sweep (default: runs/<name of the file>)")

    summary = "Keep what a teacher says on disk, for many students."
    example = "example: jaxdistill cache build experiments/sparse_kd.py"
    caches = verbs.add_parser("cache", help=summary, description=summary, epilog=example)
    caches = caches.add_subparsers(required=True, metavar="build | verify | info | slice | import")
    added = verb(cache_build, "jaxdistill cache build experiments/sparse_kd.py", caches)
    added.add_argument("target", help="an experiment file whose teacher is Cached(...), or a cache to continue")
    experiment_options(added, "the run whose cache it is; the cache lies beside it")
    added.add_argument("--batch", type=int, help="windows in a forward pass of the teacher (default: 8192 tokens)")
    added.add_argument("--part", metavar="i/n", help="build every n-th shard from the i-th on, for n machines")
    place_options(added)
    added = verb(cache_verify, "jaxdistill cache verify runs/sparse_kd-cache", caches)
    added.add_argument("directory", help="of the cache")
    added.add_argument("--windows", type=int, default=16, help="how many to score again (default: 16; 0 for none)")
    added.add_argument("--quiet", action="store_true", help="no progress view")
    added = verb(cache_info, "jaxdistill cache info runs/sparse_kd-cache", caches)
    added.add_argument("directory", help="of the cache")
    added = verb(cache_slice, "jaxdistill cache slice runs/top50 --first 12 --out runs/top12", caches)
    added.add_argument("directory", help="of the cache")
    added.add_argument("--out", required=True, help="a new directory")
    added.add_argument("--first", type=int, help="how many entries of a token to keep, of top-K targets")
    added.add_argument("--windows", type=int, help="how many windows of the students' order to keep")
    added.add_argument("--quiet", action="store_true", help="no progress view")
    example = "jaxdistill cache import captured --format distillkit --data experiments/mine.py --out runs/captured"
    added = verb(cache_import, example, caches)
    added.add_argument("source", help="the directory that the other system wrote")
    added.add_argument("--format", required=True, choices=("distillkit", "megatron"), help="what wrote it")
    added.add_argument("--data", required=True, metavar="FILE", help="an experiment file with data of data.Sequences")
    added.add_argument("--out", required=True, help="a new directory, or one to continue")
    added.add_argument("--resolution", type=float, default=1 / 64, help="nats between stored values (default: 1/64)")
    added.add_argument("--quiet", action="store_true", help="no progress view")

    def ensemble_options(added: argparse.ArgumentParser) -> None:
        with_all = "a run of the same tokenizer, whose mean with the target is taken in its place; repeat for more"
        added.add_argument("--ensemble", action="append", default=[], metavar="RUN", help=with_all)
        added.add_argument(
            "--average", choices=("probability", "logit"), default="probability", help="of an ensemble (default: first)"
        )

    added = verb(eval, "jaxdistill eval runs/sparse_kd --questions quiz.jsonl")
    added.add_argument("target", help="the directory of a finished run, of an imported model or of a sweep")
    ensemble_options(added)
    added.add_argument("--teacher", metavar="RUN", help="compare with this run; none for no teacher (default: its own)")
    added.add_argument("--out", help="where eval.json and eval.html go (default: the run or sweep directory)")
    added.add_argument("--split", choices=("validation", "train"), default="validation", help="of the run's own data")
    added.add_argument("--windows", type=int, help="at most so many of each text (default: as in training, or all)")
    added.add_argument("--length", type=int, help="inputs in a window of other texts (default: as in training)")
    added.add_argument("--bins", type=int, default=15, help="of the reliability diagrams and ECE (default: 15)")
    added.add_argument(
        "--text", action="append", default=[], metavar="NAME=PATH", help="a further text; repeat for more"
    )
    added.add_argument(
        "--questions", action="append", default=[], metavar="FILE", help="JSONL of choices or cloze; repeat for more"
    )
    added.add_argument("--lm-eval", action="append", default=[], metavar="TASK", help="of lm-eval; repeat for more")
    added.add_argument("--lm-eval-tasks", type=Path, metavar="DIR", help="task files for lm-eval (default: its own)")
    added.add_argument("--quiet", action="store_true", help="no progress view and no table")

    added = verb(model_import, "jaxdistill import downloads/Qwen3-0.6B --out imported/qwen3")
    added.add_argument("source", metavar="DIR", help="with config.json, safetensors and tokenizer.json")
    added.add_argument("--out", help="the directory to make (default: imported/<name of DIR>)")
    added.add_argument("--eos", metavar="TOKEN", help="that ends a document (default: the tokenizer's eos_token)")

    added = verb(model_export, "jaxdistill export runs/distill exported/distill")
    added.add_argument("run", help="the directory of a run, or of an imported model")
    added.add_argument("out", metavar="DIR", help="the directory to make")

    added = verb(interpolate, "jaxdistill interpolate runs/boomerang/student --order last")
    added.add_argument("run", help="the directory of a student that started from layers of its teacher")
    added.add_argument("--order", choices=("last", "first", "greedy"), default="last", help="of blocks (default: last)")
    added.add_argument("--teacher", metavar="DIR", help="run or imported model (default: what the student began as)")
    added.add_argument("--keep", metavar="0,2,4", help="its layers that the student's stand for (default: as begun)")
    added.add_argument("--windows", type=int, help="at most so many of validation (default: as in training)")
    added.add_argument("--size", metavar="1.5B", help="write the model of about so many parameters")
    added.add_argument("--layers", type=int, help="write the model of so many layers")
    added.add_argument("--out", help="for table and figure (default: the run), or for the model that is written")
    added.add_argument("--quiet", action="store_true", help="no progress view")

    added = verb(generate, "jaxdistill generate runs/sparse_kd/full 'def main(' --temperature 0.8")
    added.add_argument("target", help="a run directory")
    added.add_argument("prompt", nargs="*", help="a text to continue")
    ensemble_options(added)
    added.add_argument("--prompts", type=Path, metavar="FILE", help='more of them, JSONL: {"prompt": "def main("}')
    added.add_argument("--tokens", type=int, default=64, help="at most so many for each (default: 64)")
    added.add_argument("--temperature", type=float, help="draw tokens, from softmax(logits / temperature)")
    added.add_argument("--top-k", type=int, help="draw among the k most probable tokens")
    added.add_argument("--top-p", type=float, help="draw among the fewest tokens whose probability reaches p")
    added.add_argument("--seed", type=int, default=0, help="of the draws")
    added.add_argument("--json", action="store_true", help="a JSON object a line, with ids and log-probabilities")
    added.add_argument("--quiet", action="store_true", help="no progress view")

    added = verb(diff, "jaxdistill diff experiments/distill.py experiments/mine.py")
    added.add_argument("a", help="an experiment file or run directory")
    added.add_argument("b", help="another one")
    return top
