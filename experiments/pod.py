"""What a pod is for: Llama 3.1 8B teaches Llama 3.2 1B, and 70B teaches 8B, on windows of 8192 tokens.

    jaxdistill plan experiments/pod.py --topology v5p-64       # minutes on a laptop: does it fit, how fast is it
    jaxdistill plan experiments/pod.py --preset 70b --topology v5p-512
    jaxdistill import downloads/Llama-3.1-8B                   # then, on the pod
    jaxdistill import downloads/Llama-3.2-1B
    jaxdistill run experiments/pod.py

Presets are 8b and 70b, with the teacher's whole distribution; 8b-top and 70b-top keep its 50 most probable tokens,
8b-draws and 70b-draws 50 random ones (arXiv 2503.16870). The text is your own, in data/. A billion tokens of the first
are 2000 steps; what a step takes is in benchmarks/results/plans.md, as an estimate: no pod has run it yet.
"""

from jaxdistill import data
from jaxdistill.errors import InputError
from jaxdistill.experiment import Experiment
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.losses.sampled import SampledCrossEntropy
from jaxdistill.losses.top_k import TopKDivergence
from jaxdistill.models.families import llama
from jaxdistill.models.transformer import Config
from jaxdistill.optim import AdamW
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.start import Truncated
from jaxdistill.teacher import Draws, Online, Top

SIZES = {
    "8b": ("Llama-3.1-8B", llama.llama3_1_8b(), "Llama-3.2-1B", llama.llama3_2_1b()),
    "70b": ("Llama-3.1-70B", llama.llama3_1_70b(), "Llama-3.1-8B", llama.llama3_1_8b()),
}
TARGETS = {
    "": (None, ForwardKL()),
    "-top": (Top(50), TopKDivergence()),
    "-draws": (Draws(50), SampledCrossEntropy()),
}
BATCH = {"8b": 64, "70b": 256}


def config(preset: str = "8b") -> Experiment:
    """A student that starts from its own pretraining, and its teacher."""
    size, target = _parts(preset)
    teacher, _, student, model = SIZES[size]
    keep, loss = TARGETS[target]
    return Experiment(
        model=model,
        data=data.Tokens(data.Files("data/*.jsonl"), data.HuggingFace(f"imported/{student}/tokenizer"), length=8192),
        objective={"kl": Term(loss)},
        steps=2000,
        batch=BATCH[size],
        optim=AdamW(peak=3e-5, warmup=100),
        teacher=Online(f"imported/{teacher}", keep),
        start=Truncated(f"imported/{student}", keep=tuple(range(model.num_layers))),
        dtype="bfloat16",
        remat=True,
        mesh=Mesh(fsdp=-1),
        checkpoint_every=200,
    )


def shapes(preset: str = "8b") -> dict[str, Config]:
    """What a plan must know of the models in directories that it has not: their shapes, by role."""
    _, config, _, _ = SIZES[_parts(preset)[0]]
    return {"teacher": config}


def _parts(preset: str) -> tuple[str, str]:
    size, dash, target = preset.partition("-")
    if size not in SIZES or dash + target not in TARGETS:
        raise InputError(f"there is no preset {preset!r}: choose of {', '.join(s + t for s in SIZES for t in TARGETS)}")
    return size, dash + target
