"""How long does a batch of 64 sequences of 2048 tokens take, on the host and on the device?

    python tests/align/speed.py

A text of random letters is cut into pieces of 4.4 bytes on average by the teacher, of 3.8 by the student: vocabularies
of tens of thousands. Prints the median of nine calls of each part in milliseconds.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.align import ChunkKL, Spelling, align, chunk_logp, locate, merge

B, L, BYTES = 64, 2048, 2048 * 6


def cut(rng, text_BY, mean):
    """(ids, spelling) of pieces whose lengths are one more than Poisson, as many as L in a row."""
    table: dict[bytes, int] = {}
    tokens_BL = np.empty((B, L), np.int32)
    for row, end_L in enumerate(np.cumsum(1 + rng.poisson(mean - 1, (B, L)), axis=1)):
        starts_L = np.append(0, end_L[:-1])
        for place, (start, end) in enumerate(zip(starts_L, end_L, strict=True)):
            tokens_BL[row, place] = table.setdefault(text_BY[row, start:end].tobytes(), len(table))
    return tokens_BL, Spelling.of(list(table), {})


def milliseconds(call, *arguments):
    """The median of nine, after one that compiles."""
    taken = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[1:])


@jax.jit
def loss_and_gradient(chunks, logp_teacher_BL, logp_student_BL, boundary_teacher_BL, boundary_student_BL):
    """The whole of the device's part: merged chunks, both corrections, KL, and its gradient in the student."""
    merged = merge(chunks, boundary_teacher_BL, 0.1)
    teacher_BC = chunk_logp(logp_teacher_BL, merged.teacher_BL, L, boundary_teacher_BL, "both")

    def loss(logp_student_BL, boundary_student_BL):
        student_BC = chunk_logp(logp_student_BL, merged.student_BL, L, boundary_student_BL, "both")
        return jnp.sum(merged.is_real_BC * ChunkKL()(teacher_BC, student_BC))

    return jax.value_and_grad(loss, argnums=(0, 1))(logp_student_BL, boundary_student_BL)


def main():
    rng = np.random.default_rng(0)
    text_BY = np.frombuffer(b"etaoins ", np.uint8)[rng.integers(0, 8, (B, 2 * BYTES))]
    teacher, student = cut(rng, text_BY, 4.4), cut(rng, text_BY, 3.8)
    is_real_BL = np.ones((B, L), bool)
    sides = [locate(tokens_BL, is_real_BL, spelling) for tokens_BL, spelling in (teacher, student)]
    chunks = align(*sides)
    print(f"vocabularies of {len(teacher[1].starts) - 1} and {len(student[1].starts) - 1}, {B} x {L} tokens")
    print(f"chunks a row: {chunks.is_real_BC.sum(1).mean():.0f}")
    print(f"spans of one side      {milliseconds(locate, teacher[0], is_real_BL, teacher[1]):7.1f} ms")
    for at in ("bytes", "spaces"):
        print(f"align at {at:10}    {milliseconds(align, *sides, at):7.1f} ms")
    logp = [jnp.asarray(-rng.exponential(size=(B, L)), jnp.float32) for _ in range(4)]
    print(f"loss and gradient      {milliseconds(loss_and_gradient, chunks, *logp):7.1f} ms on {jax.devices()[0]}")


if __name__ == "__main__":
    main()
