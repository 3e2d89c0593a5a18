"""Can a model move to another tokenizer, and take what it knows along?

    jaxdistill sweep experiments/cross_tokenizer.py
    jaxdistill report experiments/cross_tokenizer.py

Approximate likelihood matching (ALM, arXiv 2503.20083) on text every Python installation has. A model of 512 pieces is
its own teacher: its embeddings are transplanted into another vocabulary, of 1024 pieces or of bytes, and the copy is
trained until the chunks of text that both cut alike are worth the same to both. Against it: plain text without the
teacher (SFT); both together, by coefficients or by GradMag; ALM with hidden states at the ends of chunks; what others
do where the tokenizers agree (MinED, GOLD, ULD) or wherever attention finds a place (DSKD); ALM with other corrections
of a chunk's likelihood, from a cache, with adapters, and with what a student of bytes gets beside. Coefficients are
those of the papers; one rate for all, and four others for SFT, ALM and MinED.

A model is moved to keep what it knows, with other text than made it so. So the teacher has read the whole library, the
move reads the language reference alone, and bits per byte are those of the whole library. "same-text" moves with the
teacher's own text, and small students of that text begin from random parameters.
Expected: ALM > MinED >= SFT, most of all for bytes. One core, an hour.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from pydoc_data.topics import topics
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
from jaxdistill.start import LoRA, Transplanted
from jaxdistill.teacher import Across, Cached

VOCABULARY, LENGTH = 512, 64


@dataclasses.dataclass(frozen=True)
class Reference(data.Stdlib):
    """The language reference alone to train on, a twentieth of the library's text, and all of it to validate on."""

    def documents(self, split: str) -> Iterator[str]:
        validation = list(super().documents("validation"))
        return iter(validation if split == "validation" else [x for x in topics.values() if x not in validation])

    def fingerprint(self) -> str:
        return hashlib.sha256(f"reference {super().fingerprint()}".encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Kind:
    """Where a model moves to.

    Attributes:
      tokenizer, size: the new vocabulary.
      length: of a window, in its tokens.
      source: the text of the move.
    """

    tokenizer: data.SentencePiece | data.Bytes
    size: int
    length: int
    source: data.Stdlib = Reference()


PIECES = data.SentencePiece(1024, characters=2_000_000)
KINDS = {
    "pieces": Kind(PIECES, 1024, 56),
    "bytes": Kind(data.Bytes(), 257, 108),
    "same-text": Kind(PIECES, 1024, 56, data.Stdlib()),
}
STEPS, PEAK = 300, 1e-2
CE, CHUNKS = {"ce": Term(CrossEntropy())}, {"alm": Term(ChunkKL())}
HIDDEN = {"hidden": Term(Layers(ChannelSquare(), ((-1, -1),)))}
OF_BYTES = {"untie": True, "subwords": 16}  # what ALM gives a student of bytes beside


@dataclasses.dataclass(frozen=True)
class Arm:
    """How a student is trained.

    Attributes:
      objective: its terms.
      chunking: how the two texts are compared.
      match: which of the teacher's ids stand for the student's.
      combine: how gradients of terms become one.
      cached: the teacher has spoken before, about the windows that the student sees.
      rank: of adapters, which are trained in place of the matrices; 0 for the matrices themselves.
      moved: what `Transplanted` is told beside the run.
      seeds: how many there are of each move.
    """

    objective: dict[str, Term]
    chunking: Chunking = Chunking()
    match: Literal["nearest", "same"] | None = None
    combine: Combiner | None = None
    cached: bool = False
    rank: int = 0
    moved: dict[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)


ARMS = {
    "ce": Arm(CE, seeds={"pieces": 2, "bytes": 2, "same-text": 1}),
    "alm": Arm(CHUNKS, seeds={"pieces": 2, "bytes": 2, "same-text": 1}),
    "alm+ce": Arm(CHUNKS | CE, seeds={"pieces": 1}),
    "alm+ce-gradmag": Arm(CHUNKS | CE, combine=GradMag(), seeds={"pieces": 2, "bytes": 1, "same-text": 1}),
    "alm+hidden": Arm(CHUNKS | HIDDEN, combine=GradMag(), seeds={"pieces": 2, "bytes": 2}),
    "mined": Arm(methods.mined(), match="nearest", seeds={"pieces": 2, "bytes": 2, "same-text": 1}),
    "uld": Arm(methods.uld_aligned(), seeds={"pieces": 1}),
    "gold": Arm(methods.gold(), match="same", seeds={"pieces": 1}),
    "dskd": Arm(methods.dskd(), seeds={"pieces": 1, "bytes": 1}),
    "alm-uncorrected": Arm(CHUNKS, Chunking(debias="none"), seeds={"pieces": 2, "bytes": 2}),
    "alm-both-sides": Arm(CHUNKS, Chunking(debias="both"), seeds={"pieces": 2, "bytes": 2}),
    "alm-spaces": Arm(CHUNKS, Chunking(at="spaces"), seeds={"pieces": 2}),
    "alm-spaces-both-sides": Arm(CHUNKS, Chunking(at="spaces", debias="both"), seeds={"pieces": 2}),
    "alm-cached": Arm(CHUNKS, cached=True, seeds={"pieces": 1}),
    "alm-lora": Arm(CHUNKS, rank=8, seeds={"pieces": 2}),
    "ce-subwords": Arm(CE, moved=OF_BYTES, seeds={"bytes": 1}),
    "alm-subwords": Arm(CHUNKS, moved=OF_BYTES, seeds={"bytes": 1}),
}
RATES = (1.25e-3, 2.5e-3, 5e-3, 2e-2)  # beside PEAK, for SFT, ALM and MinED
PROTOCOLS = (*KINDS, "small")  # panels of the figure
SMALL = ("ce", "alm+ce-gradmag")


def teacher() -> Experiment:
    """Four layers of width 48 on pieces of text."""
    return Experiment(
        model=ladder.rung(4, 48, VOCABULARY, head_size=16, multiple=8, base_width=64),
        data=data.Tokens(
            data.Stdlib(),
            data.SentencePiece(VOCABULARY, characters=2_000_000),
            length=LENGTH,
            validation_windows=512,
        ),
        objective=CE,
        steps=4000,
        batch=16,
        optim=AdamW(peak=1e-2, warmup=200),
        checkpoint_every=1000,
        protocol="teacher",
    )


def student(kind: str, name: str, seed: int = 0, peak: float = PEAK) -> Experiment:
    """The teacher in another vocabulary, trained as one of the arms says."""
    arm, to = ARMS[name], KINDS[kind]
    moved = Transplanted(teacher(), **arm.moved)
    source = None
    if arm.cached:
        source = Cached(teacher(), arm.chunking, windows=STEPS * teacher().batch)
    elif arm.objective != CE:
        source = Across(teacher(), arm.chunking, match=arm.match)
    return dataclasses.replace(
        teacher(),
        model=moved.config(teacher().model, to.size),
        data=dataclasses.replace(teacher().data, source=to.source, tokenizer=to.tokenizer, length=to.length),
        start=LoRA(moved, rank=arm.rank, alpha=arm.rank) if arm.rank else moved,
        teacher=source,
        objective=arm.objective,
        combine=arm.combine,
        steps=STEPS,
        optim=AdamW(peak=peak, warmup=STEPS // 10),
        seed=seed,
        protocol=kind,
    )


def small(name: str, seed: int = 0) -> Experiment:
    """A student of pieces of a quarter of the teacher's size, from random parameters."""
    return dataclasses.replace(
        student("same-text", name, seed),
        model=ladder.rung(2, 32, KINDS["pieces"].size, head_size=16, multiple=8, base_width=64),
        start=None,
        steps=3 * STEPS,
        optim=AdamW(peak=2e-2, warmup=3 * STEPS // 10),
        protocol="small",
    )


def config() -> Experiment:
    """ALM into another vocabulary of pieces."""
    return student("pieces", "alm")


def sweep() -> dict[str, Experiment]:
    """Every arm for every move, other rates, transplants that are hardly trained, and small students."""
    runs = {"teacher": teacher()}
    for kind in KINDS:
        for name, arm in ARMS.items():
            runs |= {f"{kind}-{name}-{seed}": student(kind, name, seed) for seed in range(arm.seeds.get(kind, 0))}
        untrained = AdamW(peak=1e-9, warmup=1)
        runs[f"{kind}-untrained-0"] = dataclasses.replace(student(kind, "ce"), steps=1, optim=untrained)
    for name in ("ce", "alm", "mined"):
        runs |= {f"pieces-{name}-peak{peak:g}-0": student("pieces", name, peak=peak) for peak in RATES}
    return runs | {f"small-{name}-{seed}": small(name, seed) for name in SMALL for seed in (0, 1)}


# ---------------------------------------------------------------------------------------------------------------------
# The report


def report(directory: Path) -> list[Path]:
    """A table, a figure and a page of the finished sweep in a directory."""
    rows = [row_of(name, directory / name) for name in sweep()]
    drawing = svg(figure(rows))
    contents = {
        "csv": page.csv_of(rows),
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
        "protocol": experiment.protocol,
        "arm": name.removeprefix(f"{experiment.protocol}-").removesuffix(f"-{experiment.seed}"),
        "seed": experiment.seed,
        "peak": experiment.optim.peak,
        "bits per byte": result["bits_per_byte"],
        "loss": result["loss"],
        "seconds": result["seconds"],
    }


CAPTION = (
    "Bits per byte of the library's validation text: the lower the better. Moves to 1024 pieces and to bytes with the "
    "language reference alone; to pieces with the teacher's own text; small students of that text from random "
    "parameters. Several points in a row are seeds. Dashed: the teacher, in its own vocabulary."
)


@in_style
def figure(rows: list[dict[str, Any]]) -> Any:
    """A row an arm at its own rate, the best on top; a panel a protocol."""
    drawing, panels = canvas(15, 4, 1, len(PROTOCOLS))
    source = next(row["bits per byte"] for row in rows if row["run"] == "teacher")
    ((colour, marker),) = styles(1)
    for panel, protocol in zip(panels, PROTOCOLS, strict=True):
        own = [row for row in rows if row["protocol"] == protocol and row["arm"] in ARMS]
        own = sorted(own, key=lambda row: row["bits per byte"])
        arms = list(dict.fromkeys(row["arm"] for row in own))
        values, places = [row["bits per byte"] for row in own], [arms.index(row["arm"]) for row in own]
        panel.plot(values, places, color=colour, marker=marker, linestyle="none")
        panel.axvline(source, color=FAINT, linestyle="--", zorder=1)
        panel.set_yticks(range(len(arms)), arms)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.set_title(protocol)
        panel.set_xlabel("bits per byte")
    return drawing
