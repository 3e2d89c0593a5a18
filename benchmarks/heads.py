"""What do the ops on a Head cost at the heads of public models, against bare matmuls and against the alternatives?

    python benchmarks/heads.py                  # a machine of a few cores, fp32; not run yet
    python benchmarks/heads.py --sizes small    # narrow heads, three minutes
    python benchmarks/heads.py --sizes gpu      # one accelerator, bf16: Llama-3, Qwen3 and Gemma-3; not run yet

Student ops, forward alone and with the gradients dh and dW, of a loss of S ids a token and of a forward KL:

    full          all logits at once, and XLA: the ops' own definitions
    forward       linear_sparse, linear_divergence: gradients formed in the forward pass, a chunk at a time
    recompute     the same with mode="recompute"
    ..., pallas   linear_sparse with the kernels for this platform, where there are any
    tokamax       its linear cross-entropy in chunks, where it is installed (labels only: S = 1)
    torch, Liger  where they and a GPU are, see heads_torch.py (labels, S = 1, and KL)

Teacher ops, forward alone: linear_top_k and linear_sample, chunked and on all logits at once.

Expected before measuring. R is the time over its floor, the matmuls that it cannot avoid at the rate of a bare matmul
measured in the same rounds: one of 2 N D V FLOP forward, three with gradients, one more where a teacher's logits are
formed as well. So R is 1 and a little for forward alone and for full, 4/3 and a little for recompute with gradients,
and hardly depends on S. It is larger on a CPU with D = 128, where exp of a logit costs as much as its dot product.
Memory of full grows as N V; of forward as a chunk and dW; of recompute as a tile.

Times are the least of several rounds in which all programs of a case take turns. Memory is what a program is allotted
beyond its inputs and results: XLA knows once it is compiled; of PyTorch, how far its allocator rises in a call. What
would not fit the device is not run. Bytes moved are counted in the compiled program's text (parallel/costs.py). dW, or
the ids drawn, are compared with those of full.
"""

import argparse
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from programs import Program, compiled, least_times

from jaxdistill.head import Head
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.linear_heads import linear_divergence, linear_sample, linear_sparse, linear_top_k, shapes
from jaxdistill.losses.linear_heads.shapes import Shape
from jaxdistill.losses.linear_heads.stream import CHUNK_TOKENS

MIB = 2**20
LENGTH = 2048  # positions of a sequence
FORWARD, GRADIENTS = "forward", "with gradients"


@dataclasses.dataclass(frozen=True)
class Case:
    """One head, N tokens and S ids a token."""

    shape: Shape
    tokens: int
    ids: int

    def head(self, seed: int, dtype: str) -> Head:
        length = min(self.tokens, LENGTH)
        return self.shape.random(seed, self.tokens // length, length, dtype)

    def but(self, field: str, *values: Any) -> tuple["Case", ...]:
        """Cases that differ from this one in one respect."""
        return tuple(dataclasses.replace(self, **{field: value}) for value in values)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured: cases, those that compare whole distributions, the type of h and W, rounds of the timing."""

    cases: tuple[Case, ...]
    dense: tuple[Case, ...]
    dtype: str
    rounds: int


SMALL = Case(Shape("D = 128", 128, 32_768, 32_768), 512, 50)
WIDER = Case(Shape("D = 512", 512, 32_768, 32_768), 2048, 50)
PADDED = Shape("D = 128, padded", 128, 50_304, 50_277)
SMOLLM = Case(shapes.SMOLLM2_135M, 2048, 50)
LLAMA = Case(shapes.LLAMA_3_1_8B, 8192, 50)
SIZES = {
    "small": Sizes(
        (WIDER, *WIDER.but("ids", 1), SMALL, *SMALL.but("ids", 1, 256), *SMALL.but("shape", PADDED)),
        (WIDER, SMALL),
        "float32",
        rounds=3,
    ),
    "cpu": Sizes(
        (SMOLLM, *SMOLLM.but("ids", 1, 12, 256), *SMOLLM.but("tokens", 512), *SMOLLM.but("shape", shapes.GPT2)),
        SMOLLM.but("tokens", 512),
        "float32",
        rounds=3,
    ),
    "gpu": Sizes(
        (
            LLAMA,
            *LLAMA.but("ids", 1, 12, 256),
            *LLAMA.but("tokens", 2048, 32_768),
            *LLAMA.but("shape", shapes.QWEN3_8B, shapes.GEMMA_3_4B),
        ),
        (LLAMA, *LLAMA.but("shape", shapes.QWEN3_8B)),
        "bfloat16",
        rounds=8,
    ),
}

ALTERNATIVES = {
    "full": {"implementation": "reference"},
    "forward": {"implementation": "chunked"},
    "recompute": {"implementation": "chunked", "mode": "recompute"},
}
KERNELS = {
    "tpu": {
        "forward, pallas_tpu": {"implementation": "pallas_tpu"},
        "recompute, pallas_tpu": {"implementation": "pallas_tpu", "mode": "recompute"},
    },
    "gpu": {"recompute, pallas_mgpu": {"implementation": "pallas_mgpu", "mode": "recompute"}},
}


# Programs by (alternative, FORWARD or GRADIENTS).


def matmul(head: Head) -> tuple[Program, float]:
    """A bare matmul of some tokens by some rows, large enough for its rate, and how many of it make a pass."""
    h_TD, w_VD = head.h_BLD.reshape(-1, head.h_BLD.shape[-1]), head.w_VD
    some_TD, some_VD = h_TD[: CHUNK_TOKENS.get(jax.default_backend(), CHUNK_TOKENS["gpu"])], w_VD[:16_384]
    program = compiled(lambda h_TD, w_VD: h_TD @ w_VD.T, some_TD, some_VD)
    return program, len(h_TD) / len(some_TD) * len(w_VD) / len(some_VD)


def both_ways(name: str, loss: Callable, *arguments: Any) -> dict[tuple[str, str], Program]:
    """The loss alone, and with its gradient in the first argument."""
    return {
        (name, FORWARD): compiled(loss, *arguments),
        (name, GRADIENTS): compiled(jax.value_and_grad(loss), *arguments),
    }


def sparse_programs(case: Case, head: Head) -> dict[tuple[str, str], Program]:
    """sum_s weight_s (lse - z_s), the loss of random samples and, with one id of weight 1, cross-entropy."""
    rng, tokens = np.random.default_rng(0), head.h_BLD.shape[:2]
    id_BLS = jnp.asarray(np.sort(rng.integers(case.shape.vocab_size, size=(*tokens, case.ids))), jnp.int32)
    weight_BLS = jnp.asarray(rng.dirichlet(np.ones(case.ids), size=tokens), jnp.float32)

    def function(lse_BL, z_BLS, inputs):
        weight_BLS = inputs["weight_BLS"]
        return jnp.sum(weight_BLS * (lse_BL[..., None] - z_BLS), axis=-1), {}

    def loss(options, head, id_BLS, weight_BLS):
        return linear_sparse(function, head, id_BLS, {"weight_BLS": weight_BLS}, **options)[0]

    programs = {}
    for name, options in (ALTERNATIVES | KERNELS.get(jax.default_backend(), {})).items():
        programs |= both_ways(name, functools.partial(loss, options), head, id_BLS, weight_BLS)
    if case.ids == 1:
        programs |= tokamax_programs(head, id_BLS[..., 0]) | torch_programs("cross_entropy", head, id_BLS[..., 0])
    return programs


def tokamax_programs(head: Head, label_BL) -> dict[tuple[str, str], Program]:
    if not importlib.util.find_spec("tokamax"):
        return {}
    import tokamax

    def loss(arrays, label_T):
        return tokamax.linear_softmax_cross_entropy_loss(
            arrays["h_TD"], label_T, arrays["w_DV"], reduction="sum", implementation="chunked_xla"
        )

    arrays = {"h_TD": head.h_BLD.reshape(label_BL.size, -1), "w_DV": jnp.asarray(head.w_VD.T)}
    return both_ways("tokamax", loss, arrays, label_BL.reshape(-1))


def torch_programs(loss: str, *arguments: Any) -> dict[tuple[str, str], Program]:
    if jax.default_backend() != "gpu" or not importlib.util.find_spec("torch"):
        return {}
    import heads_torch

    return getattr(heads_torch, loss)(*arguments)


def dense_programs(head: Head, teacher: Head) -> dict[tuple[str, str], Program]:
    """The sum of a forward KL from a teacher of the same shape."""
    weight_BL = jnp.ones(head.h_BLD.shape[:2])

    def loss(options, head, teacher):
        return linear_divergence(ForwardKL(), head, teacher, weight_BL, **options)[0]

    programs = {}
    for name, options in ALTERNATIVES.items():
        programs |= both_ways(name, functools.partial(loss, options), head, teacher)
    return programs | torch_programs("forward_kl", head, teacher)


def teacher_programs(case: Case, head: Head) -> dict[tuple[str, str], Program]:
    """Top-K and samples, each on all logits and in chunks."""
    index_BL, key = jnp.arange(case.tokens, dtype=jnp.int32).reshape(head.h_BLD.shape[:2]), jax.random.key(0)
    ops = {
        "top-K": lambda head, name: linear_top_k(head, case.ids, implementation=name),
        "sample": lambda head, name: linear_sample(head, case.ids, key, index_BL=index_BL, implementation=name),
    }
    return {
        (name, op): compiled(lambda head, op=op, name=name: ops[op](head, name), head)
        for op in ops
        for name in ("reference", "chunked")
    }


# Tables.


def timed(programs: Mapping[tuple[str, str], Program], head: Head, rounds: int) -> tuple[dict, float]:
    """(seconds by program, seconds of one pass)."""
    bare, times_in_a_pass = matmul(head)
    seconds = least_times({"bare": bare, **programs}, rounds)
    return seconds, seconds.pop("bare") * times_in_a_pass


def cell(seconds: float | None, floor: float) -> str:
    return "does not fit" if seconds is None else f"{1e3 * seconds:.1f} ({seconds / floor:.2f})"


def sizes_of(*programs: Program) -> list[str]:
    """Temporary MiB of each program, then GB that each reads and writes."""
    memory = [f"{program.memory / MIB:.0f}" for program in programs]
    return memory + ["" if program.moved is None else f"{program.moved / 1e9:.2f}" for program in programs]


def gradient_of_w(program: Program) -> jax.Array | None:
    """dW, fp32; None of a program that is not over a Head, whose gradient has another form."""
    gradient = program.call()[1]
    return gradient.w_VD.astype(jnp.float32) if isinstance(gradient, Head) else None


def student_rows(case: Case, programs, head: Head, rounds: int, teacher_passes: int) -> list[tuple]:
    seconds, one_pass = timed(programs, head, rounds)
    exact_VD, rows = None, []
    for name in dict.fromkeys(name for name, _ in programs):
        cells = [
            cell(seconds.get((name, kind)), (passes + teacher_passes) * one_pass)
            for kind, passes in ((FORWARD, 1), (GRADIENTS, 3))
        ]
        memory = sizes_of(programs[name, FORWARD], programs[name, GRADIENTS])
        dw_VD = gradient_of_w(programs[name, GRADIENTS]) if (name, GRADIENTS) in seconds else None
        exact_VD = dw_VD if name == "full" else exact_VD
        known = dw_VD is not None and exact_VD is not None
        differs = f"{jnp.linalg.norm(dw_VD - exact_VD) / jnp.linalg.norm(exact_VD):.0e}" if known else ""
        rows.append((case.shape.source, case.tokens, case.ids, name, *cells, *memory, differs))
    return rows


def teacher_rows(case: Case, head: Head, rounds: int) -> list[tuple]:
    programs = teacher_programs(case, head)
    seconds, one_pass = timed(programs, head, rounds)
    rows = []
    for op in dict.fromkeys(op for _, op in programs):
        names = (("reference", op), ("chunked", op))
        cells = [cell(seconds.get(name), one_pass) for name in names]
        memory = sizes_of(*(programs[name] for name in names))
        agree = ""
        if all(name in seconds for name in names):
            one, other = (programs[name].call().id_BLS for name in names)
            agree = f"{100 * float(jnp.mean(one == other)):.2f} %"
        rows.append((case.shape.source, case.tokens, case.ids, op, *cells, *memory, agree))
    return rows


def tables(sizes: Sizes) -> list[report.Table]:
    sparse, dense, teacher = [], [], []
    for case in report.progress(sizes.cases, "student and teacher"):
        head = case.head(0, sizes.dtype)
        sparse += student_rows(case, sparse_programs(case, head), head, sizes.rounds, teacher_passes=0)
        teacher += teacher_rows(case, head, sizes.rounds)
    for case in report.progress(sizes.dense, "whole distributions"):
        head, other = case.head(0, sizes.dtype), case.head(1, sizes.dtype)
        dense += student_rows(case, dense_programs(head, other), head, sizes.rounds, teacher_passes=1)
    bytes_of = ("MiB", "MiB", "GB", "GB")
    student = ("head", "N", "S", "program", "forward, ms (R)", "with gradients, ms (R)", *bytes_of, "dW differs by")
    whole = [(*row[:2], "all", *row[3:]) for row in dense]
    return [
        report.Table("Student, S ids a token", student, sparse),
        report.Table("Student, forward KL from a whole distribution", student, whole),
        report.Table(
            "Teacher", ("head", "N", "S", "op", "full, ms (R)", "chunked, ms (R)", *bytes_of, "same ids"), teacher
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", choices=SIZES, default="cpu")
    sizes = SIZES[parser.parse_args().sizes]
    notes = (
        f"{jax.default_backend()}, {sizes.dtype}; times: least of {sizes.rounds} interleaved calls; R: over the floor "
        "of 1 pass forward, 3 with gradients, 1 more with a teacher; MiB: temporary memory and GB: bytes read and "
        "written, forward and with gradients, or full and chunked"
    )
    report.write("heads", notes, tables(sizes))


if __name__ == "__main__":
    main()
