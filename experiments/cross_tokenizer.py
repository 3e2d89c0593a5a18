"""Can a model move to another tokenizer, and take what it knows along?

    jaxdistill sweep experiments/cross_tokenizer.py
    jaxdistill report experiments/cross_tokenizer.py

Approximate likelihood matching (ALM, arXiv 2503.20083) on text every Python installation has. A model of 512 pieces is
its own teacher: its embeddings are transplanted into another vocabulary, of 1024 pieces or of bytes, and the copy is
trained until the chunks of text that both cut alike are worth the same to both. Against it: plain text without the
teacher (SFT); both together, by coefficients or by GradMag; ALM with hidden states at the ends of chunks; what others
do where the tokenizers agree (MinED, GOLD, and ULD, also as published), or wherever attention finds a place (DSKD); and
ALM with other corrections of a chunk's likelihood. Coefficients are those of the papers.
Expected: ALM ahead of SFT, most where the vocabularies differ most. Bits per byte compare all of them.
"""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any, Literal

from jaxdistill import data, rundir
from jaxdistill.across import Chunking
from jaxdistill.evals.figures import svg
from jaxdistill.experiment import Experiment
from jaxdistill.losses import methods
from jaxdistill.losses.chunks import ChunkKL
from jaxdistill.losses.combiners import Combiner, GradMag
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.hidden import Layers
from jaxdistill.losses.objective import Term
from jaxdistill.losses.states import ChannelSquare
from jaxdistill.models import ladder
from jaxdistill.optim import AdamW
from jaxdistill.scaling import page
from jaxdistill.scaling.style import FAINT, canvas, in_style, styles
from jaxdistill.start import Transplanted
from jaxdistill.teacher import Across

VOCABULARY, LENGTH = 512, 128
STUDENTS = {  # the new vocabulary, its size, and how many of its tokens spell a window of the teacher's
    "pieces": (data.SentencePiece(1024, characters=2_000_000), 1024, 112),
    "bytes": (data.Bytes(), 257, 216),
}
SEEDS = (0, 1)
CE, CHUNKS = {"ce": Term(CrossEntropy())}, {"alm": Term(ChunkKL())}
HIDDEN = {"hidden": Term(Layers(ChannelSquare(), ((-1, -1),)))}


@dataclasses.dataclass(frozen=True)
class Arm:
    """An objective, and what it needs beside: how ids are matched, and how gradients become one."""

    objective: dict[str, Term]
    match: Literal["nearest", "same"] | None = None
    combine: Combiner | None = None


ARMS = {
    "ce": Arm(CE),
    "alm": Arm(CHUNKS),
    "alm+ce": Arm(CHUNKS | CE),
    "alm+ce-gradmag": Arm(CHUNKS | CE, combine=GradMag()),
    "alm+hidden": Arm(CHUNKS | HIDDEN, combine=GradMag()),
    "mined": Arm(methods.mined(), "nearest"),
    "uld": Arm(methods.uld_aligned()),
    "uld-row": Arm(methods.uld_aligned(at="row")),
    "gold": Arm(methods.gold(), "same"),
    "dskd": Arm(methods.dskd()),
}


def teacher() -> Experiment:
    """Six layers of width 64 on pieces of text."""
    return Experiment(
        model=ladder.rung(6, 64, VOCABULARY, head_size=16, multiple=8, base_width=64),
        data=data.Tokens(
            data.Stdlib(),
            data.SentencePiece(VOCABULARY, characters=2_000_000),
            length=LENGTH,
            validation_windows=256,
        ),
        objective={"ce": Term(CrossEntropy())},
        steps=1500,
        batch=16,
        optim=AdamW(peak=1e-2, warmup=150),
        checkpoint_every=500,
        protocol="teacher",
    )


def student(kind: str, name: str, chunking: Chunking = Chunking(), seed: int = 0) -> Experiment:
    """The teacher in another vocabulary, trained as one of the arms says."""
    arm = ARMS[name]
    tokenizer, size, length = STUDENTS[kind]
    start = Transplanted(teacher())
    return dataclasses.replace(
        teacher(),
        model=start.config(teacher().model, size),
        data=dataclasses.replace(teacher().data, tokenizer=tokenizer, length=length),
        start=start,
        teacher=None if name == "ce" else Across(teacher(), chunking, match=arm.match),
        objective=arm.objective,
        combine=arm.combine,
        steps=300,
        optim=AdamW(peak=5e-3, warmup=30),
        seed=seed,
        protocol=kind,
    )


def config() -> Experiment:
    """ALM into another vocabulary of pieces."""
    return student("pieces", "alm")


def sweep() -> dict[str, Experiment]:
    """Every objective for both vocabularies, other corrections of ALM, and a transplant that is hardly trained."""
    runs = {"teacher": teacher()}
    for kind in STUDENTS:
        for name in ARMS:
            for seed in SEEDS:
                runs[f"{kind}-{name}-{seed}"] = student(kind, name, seed=seed)
        runs |= {
            f"{kind}-alm-uncorrected": student(kind, "alm", Chunking(debias="none")),
            f"{kind}-alm-both-sides": student(kind, "alm", Chunking(debias="both")),
            f"{kind}-alm-unmerged": student(kind, "alm", Chunking(gamma=0.0)),
            f"{kind}-untrained": dataclasses.replace(student(kind, "ce"), steps=1, optim=AdamW(peak=1e-9, warmup=1)),
        }
    return runs


# ---------------------------------------------------------------------------------------------------------------------
# The report


def report(directory: Path) -> list[Path]:
    """A table, a figure and a page of the finished sweep in a directory."""
    rows = [row_of(name, directory / name) for name in sweep()]
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    drawing = svg(figure(rows))
    contents = {
        "csv": text.getvalue(),
        "svg": drawing,
        "html": page.of_rows("Can a model move to another tokenizer?", rows, {CAPTION: drawing}),
    }
    for ending, content in contents.items():
        rundir.write_atomically(directory / f"cross_tokenizer.{ending}", content)
    return [directory / f"cross_tokenizer.{ending}" for ending in contents]


def row_of(name: str, directory: Path) -> dict[str, Any]:
    """What a run came to."""
    experiment, result = rundir.read_config(directory), rundir.read_result(directory)
    return {
        "run": name,
        "vocabulary": experiment.protocol,
        "arm": name.removeprefix(f"{experiment.protocol}-").removesuffix(f"-{experiment.seed}"),
        "seed": experiment.seed,
        "bits per byte": result["bits_per_byte"],
        "loss": result["loss"],
        "seconds": result["seconds"],
    }


CAPTION = (
    "Bits per byte of validation text: the lower the better. Left: a vocabulary of 1024 pieces; right: bytes. "
    "Several points in a row are seeds. Dashed: the teacher, in its own vocabulary."
)


@in_style
def figure(rows: list[dict[str, Any]]) -> Any:
    """A row an arm, a panel a vocabulary."""
    drawing, panels = canvas(9, 3, 1, len(STUDENTS))
    source = next(row["bits per byte"] for row in rows if row["run"] == "teacher")
    for panel, kind in zip(panels, STUDENTS, strict=True):
        own = sorted((row for row in rows if row["vocabulary"] == kind), key=lambda row: row["bits per byte"])
        arms = list(dict.fromkeys(row["arm"] for row in own))
        ((colour, marker),) = styles(1)
        panel.plot(
            [row["bits per byte"] for row in own],
            [arms.index(row["arm"]) for row in own],
            color=colour,
            marker=marker,
            linestyle="none",
        )
        panel.axvline(source, color=FAINT, linestyle="--", zorder=1)
        panel.set_yticks(range(len(arms)), arms)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.set_title(kind)
        panel.set_xlabel("bits per byte")
    return drawing
