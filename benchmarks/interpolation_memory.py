"""How much memory does it take to write one model between a student and its teacher, beside the two themselves?

    python benchmarks/interpolation_memory.py                # a teacher of 1.2 GB in bf16
    python benchmarks/interpolation_memory.py --layers 3     # smaller

Both are models of random numbers; a process of its own joins them to a middle size and writes it as a Hugging Face
directory, and its resident memory is read all the while. Asked for: no more than teacher and student, so a peak of
about 1 and not of the 1.6 that holding the written model too would take. Files are 1/25 of the two models, as files of
1 GB are of an 8B teacher and its student of half the layers.
"""

import argparse
import tempfile
from pathlib import Path

import huggingface_import
import report


def pair(root: Path, keep: tuple[int, ...]):
    """Student and teacher as imported directories."""
    from jaxdistill import rundir
    from jaxdistill.interpolate.pair import Pair

    student, teacher = root / "student", root / "teacher"
    return Pair(student, teacher, rundir.read_config(student).model, rundir.read_config(teacher).model, keep)


def measure(root: Path, keep: tuple[int, ...], depth: int, shard_bytes: int):
    from jaxdistill.interpolate import export
    from jaxdistill.interpolate.pair import choose

    both = pair(root, keep)
    subset = choose(both, "last", depth=depth)
    return huggingface_import.measure(lambda: export.export(both, subset, root / "out", shard_bytes=shard_bytes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    from jaxdistill import exchange
    from jaxdistill.models.surgery import patterns

    keep = patterns.every_nth(options.layers)
    depth = (len(keep) + options.layers) // 2
    with tempfile.TemporaryDirectory() as directory:
        root, size = Path(directory), 0.0
        for name, layers in (("teacher", options.layers), ("student", len(keep))):
            source = root / f"{name}-source"
            source.mkdir()
            size += huggingface_import.write(source, layers, 2**30)[0]
            exchange.import_model(source, root / name, eos="w1")
        before, peak, seconds = report.in_fresh_process(measure, root, keep, depth, int(size * 1e9 / 25))
    rows = [
        [kind, f"{before[name]:.2f}", f"{peak[name]:.2f}", f"{(peak[name] - before[name]) / size:.2f}"]
        for kind, name in (("resident", "VmRSS"), ("of it without files", "RssAnon"))
    ]
    columns = ["memory, GB", "before", "at its peak", "difference / teacher and student"]
    title = f"{depth} of {options.layers} layers written, from {size:.2f} GB of teacher and student: {seconds:.0f} s"
    report.write("interpolation_memory", "read from /proc/self/status every 5 ms", [report.Table(title, columns, rows)])


if __name__ == "__main__":
    main()
