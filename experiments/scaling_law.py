"""What does a student reach, as a function of its size, its tokens and the loss of its teacher?

    jaxdistill sweep experiments/scaling_law.py                  # laptop: two cores, about five minutes
    jaxdistill sweep experiments/scaling_law.py --preset markov  # the same, on text whose entropy is known
    jaxdistill sweep experiments/scaling_law.py --preset gpu     # one accelerator, about 25 minutes
    jaxdistill fit runs/scaling_law
    jaxdistill sweep experiments/scaling_law.py --suggest 4      # which runs to make next, and why

The protocols of "Distillation Scaling Laws" (arXiv 2502.08606, section 4.2), which together identify its law:

    supervised       IsoFLOP profiles, and fixed-M models (M = tokens per parameter): the law L(N, D), and the teachers
    isoflop-students fixed-M teachers x students of equal compute: how the student's size and tokens act
    fixed-m-students teachers of equal compute x fixed-M students: how the teacher's loss acts
    fixed-m          fixed-M teachers x fixed-M students: the capacity gap

Presets differ in sizes, budgets and data, not in protocol; `paper` is the ladder from 143M to 12.6B, for a pod.
"""

import dataclasses
from collections.abc import Iterator

from jaxdistill import data
from jaxdistill.experiment import Experiment
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.losses.z_loss import ZLoss
from jaxdistill.models import ladder
from jaxdistill.models.transformer import Config
from jaxdistill.optim import AdamW
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.scaling import flops
from jaxdistill.teacher import Online


@dataclasses.dataclass(frozen=True)
class Preset:
    """The sizes and budgets of one scale.

    Attributes:
      base: what all runs share; its model and steps are replaced.
      sizes: models by name.
      budgets: training FLOPs of the supervised IsoFLOP profiles; the last one's models are the IsoFLOP teachers.
      fixed_m: sizes trained on `tokens_per_parameter` tokens a parameter: the fixed-M teachers.
      isoflop_students: (sizes, budgets) of the students of fixed-M teachers.
      fixed_m_students: sizes of the students, of `student_m` tokens a parameter, of IsoFLOP teachers.
      tokens_per_parameter: the M of teachers.
      student_m: the values of M of fixed-M students of fixed-M teachers; the first serves IsoFLOP teachers too.
      seeds: of the students of IsoFLOP teachers, who differ by little.
    """

    base: Experiment
    sizes: dict[str, Config]
    budgets: tuple[float, ...]
    fixed_m: tuple[str, ...]
    isoflop_students: tuple[tuple[str, ...], tuple[float, ...]]
    fixed_m_students: tuple[str, ...]
    tokens_per_parameter: float = 20.0
    student_m: tuple[float, ...] = (20.0,)
    seeds: tuple[int, ...] = (0,)


SMALLEST = 40  # steps; fewer measure the warm-up
SUPERVISED = {"ce": Term(CrossEntropy()), "z": Term(ZLoss(), 1e-4)}
DISTILLED = {"kl": Term(ForwardKL()), "z": Term(ZLoss(), 1e-4)}


def laptop() -> Preset:
    """7k to 100k parameters on the Python library's own text, 28 runs."""
    vocabulary = 512
    sizes = {f"d{width}": ladder.laptop(width, vocabulary) for width in (16, 32, 48, 64)}
    base = Experiment(
        model=sizes["d16"],
        data=data.Tokens(
            data.Stdlib(), data.SentencePiece(vocabulary, characters=2_000_000), length=128, validation_windows=512
        ),
        objective=SUPERVISED,
        steps=1,
        batch=8,
        optim=AdamW(peak=4e-2),  # the best of a factor-2 grid at 300 steps, for all four sizes
        checkpoint_every=1000,
    )
    return Preset(
        base=base,
        sizes=sizes,
        budgets=(4e10, 1.2e11, 3.6e11),
        fixed_m=("d32", "d48"),
        isoflop_students=(("d16", "d32", "d48"), (6e10,)),
        fixed_m_students=("d16", "d32"),
        tokens_per_parameter=10.0,
    )


def markov() -> Preset:
    """2k to 332k parameters on a Markov chain, whose entropy rate a fit's E can be held against; 93 runs, hours.

    What there is to learn is a table of 62 letters by 62; widths limit the rank of what a model can hold of it. Only
    the smallest models, which hold least of it, see a text again, four times at most.
    """
    source = data.Markov(62, order=1, concentration=0.3, seed=0, num_documents=4000, length=2**13)
    sizes = {f"d{width}": ladder.laptop(width, 257, head_size=8) for width in (8, 16, 24, 32, 48, 64, 96)}
    base = Experiment(
        model=sizes["d8"],
        data=data.Tokens(source, data.Bytes(), length=128, validation_windows=1024),
        objective=SUPERVISED,
        steps=1,
        batch=8,
        optim=AdamW(peak=4e-2),
        checkpoint_every=1000,
    )
    return Preset(
        base=base,
        sizes=sizes,
        budgets=(2e10, 6e10, 1.8e11, 5.4e11, 1.6e12, 4.8e12),
        fixed_m=("d24", "d48"),
        isoflop_students=(("d8", "d16", "d32"), (6e10,)),
        fixed_m_students=("d16", "d24"),
        student_m=(40.0, 160.0),
        seeds=(0, 1, 2),
    )


def gpu() -> Preset:
    """100k to 2.7M parameters on bytes of the Python library, 39 runs."""
    widths = {"d64": 64, "d96": 96, "d128": 128, "d160": 160, "d192": 192}
    sizes = {name: ladder.laptop(width, 257, head_size=32) for name, width in widths.items()}
    base = Experiment(
        model=sizes["d64"],
        data=data.Tokens(data.Stdlib(), data.Bytes(), length=512, validation_windows=1024),
        objective=SUPERVISED,
        steps=1,
        batch=32,
        optim=AdamW(peak=2e-2),
        dtype="bfloat16",
        checkpoint_every=1000,
    )
    return Preset(
        base=base,
        sizes=sizes,
        budgets=(3e12, 1e13, 3e13, 1e14),
        fixed_m=("d96", "d128", "d160"),
        isoflop_students=(("d64", "d96", "d128"), (1e13,)),
        fixed_m_students=("d64", "d96"),
    )


def paper() -> Preset:
    """The paper's ladder and budgets, on your own copy of a corpus in data/; teachers and students share no text."""
    sizes = {name: ladder.paper(layers) for name, layers in ladder.PAPER_LAYERS.items()}
    base = Experiment(
        model=sizes["143M"],
        data=data.Tokens(
            data.Files("data/*.array_record"),
            data.SentencePiece(32_768),
            length=4096,
            part=(0, 2),
            validation_windows=2048,
        ),
        objective=SUPERVISED,
        steps=1,
        batch=512,
        optim=AdamW(peak=1e-2, warmup=2000),
        dtype="bfloat16",
        remat=True,
        mesh=Mesh(fsdp=-1),
        checkpoint_every=1000,
    )
    return Preset(
        base=base,
        sizes=sizes,
        budgets=(3e19, 1e20, 3e20, 1e21),
        fixed_m=("546M", "975M", "1.82B", "2.72B", "4.82B", "7.75B", "12.6B"),
        isoflop_students=(("143M", "198M", "546M", "975M", "1.82B", "4.82B"), (3e19, 1e20, 3e20, 1e21)),
        fixed_m_students=("198M", "546M", "975M", "1.82B"),
        student_m=(20.0, 40.0, 80.0, 160.0, 320.0),
    )


PRESETS = {"laptop": laptop, "markov": markov, "gpu": gpu, "paper": paper}


def forward(preset: Preset, size: str) -> float:
    """Forward FLOPs per token."""
    model = preset.sizes[size]
    return flops.forward_flops(
        model.num_params, model.num_layers, model.width, preset.base.data.length, model.vocab_size
    )


def supervised(preset: Preset, size: str, tokens: float, protocol: str) -> Experiment:
    """One model trained on the data, with a tenth of its steps, 2000 at most, to warm up."""
    base = preset.base
    steps = max(10, round(tokens / (base.batch * base.data.length)))
    optim = dataclasses.replace(base.optim, warmup=min(base.optim.warmup, max(1, steps // 10)))
    return dataclasses.replace(base, model=preset.sizes[size], steps=steps, optim=optim, protocol=protocol)


def distilled(preset: Preset, size: str, tokens: float, teacher: Experiment, protocol: str) -> Experiment:
    """The same, trained on a teacher's distribution; on the other half of the text where the teacher had one."""
    student = supervised(preset, size, tokens, protocol)
    index, parts = student.data.part
    other = dataclasses.replace(student.data, part=((index + 1) % parts, parts))
    return dataclasses.replace(student, data=other, objective=DISTILLED, teacher=Online(teacher))


def points(preset: Preset) -> Iterator[tuple[str, Experiment]]:
    """Every run of a preset by name."""
    M = preset.tokens_per_parameter
    fixed, equal = {}, {}
    for size in preset.fixed_m:
        fixed[size] = supervised(preset, size, M * preset.sizes[size].num_params, f"fixed-m {M:g}")
        yield f"sup-{size}-m{M:g}", fixed[size]
    for budget in preset.budgets:
        for size in preset.sizes:
            run = supervised(preset, size, budget / (3 * forward(preset, size)), f"isoflop {budget:.1e}")
            if run.steps >= SMALLEST:
                equal[size] = run  # the last budget's stay
                yield f"sup-{size}-c{budget:.1e}", run
    sizes, budgets = preset.isoflop_students
    for teacher, model in fixed.items():
        for budget in budgets:
            for size in sizes:
                tokens = budget / (3 * forward(preset, size))
                run = distilled(preset, size, tokens, model, f"isoflop-students {budget:.1e}")
                yield f"kd-{size}-c{budget:.1e}-from-{teacher}-m{M:g}", run
    for size in preset.fixed_m_students:
        parameters = preset.sizes[size].num_params
        for teacher, model in equal.items():
            m = preset.student_m[0]
            run = distilled(preset, size, m * parameters, model, f"fixed-m-students {m:g}")
            for seed in preset.seeds:
                name = f"kd-{size}-m{m:g}-from-{teacher}-c{preset.budgets[-1]:.1e}" + (f"-seed{seed}" if seed else "")
                yield name, dataclasses.replace(run, seed=seed)
        for teacher, model in fixed.items():
            for m in preset.student_m[1:]:
                yield (
                    f"kd-{size}-m{m:g}-from-{teacher}-m{M:g}",
                    distilled(preset, size, m * parameters, model, f"fixed-m {m:g}"),
                )


def sweep(preset: str = "laptop") -> dict[str, Experiment]:
    """All runs of a preset."""
    if preset not in PRESETS:
        from jaxdistill.errors import InputError

        raise InputError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    return dict(points(PRESETS[preset]()))


MORE_M = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


def candidates(preset: str = "laptop") -> dict[str, Experiment]:
    """What `jaxdistill sweep --suggest` chooses among: the sweep, more tokens for all its models, second seeds."""
    own, runs = PRESETS[preset](), sweep(preset)
    teachers = {name: run for name, run in runs.items() if run.teacher is None}
    for size, model in own.sizes.items():
        for m in MORE_M:
            runs[f"more-{size}-m{m:g}"] = supervised(own, size, m * model.num_params, "adaptive")
            for name, teacher in teachers.items():
                run = distilled(own, size, m * model.num_params, teacher, "adaptive")
                runs[f"more-{size}-m{m:g}-from-{name}"] = run
    runs = {name: run for name, run in runs.items() if run.steps >= SMALLEST}
    return runs | {f"{name}-again": dataclasses.replace(run, seed=run.seed + 1) for name, run in runs.items()}


def config(preset: str = "laptop") -> Experiment:
    """The first student of the sweep, to run by itself."""
    return next(run for run in sweep(preset).values() if run.teacher is not None)
