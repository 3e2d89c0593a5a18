"""New tokens as sparse sums of shared ones, which another model's embedding suggests: orthogonal matching pursuit."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.models.transplant.fills import Fill, Mixture, Normal
from jaxdistill.models.transplant.matching import missing


def omp(donor_VC: Any, copies: np.ndarray, k: int = 64, *, batch: int = 256, rest: Fill = Normal()) -> Mixture:
    """Transplantation by orthogonal matching pursuit (Goddard & Fernandes Neto 2025, arXiv 2506.06607).

    In the embedding of a donor, which has the new tokenizer, every token without a copy is approximated by k tokens
    that both vocabularies have; the same weights then sum the old rows of these tokens. For the output layer of an
    untied model the authors' program takes the donor's. The work is 2 R A C k FLOPs, for A shared tokens.

    Args:
      donor_VC: the donor's rows of the new vocabulary, [V', C], of any width; further rows are padding.
      copies: as `matching.match` gives them.
      k: how many tokens make up one, at most. Fewer where they already leave nothing.
      batch: how many tokens are approximated at once; [batch, A] similarities are in memory.
      rest: the fill of a token whose row of the donor is orthogonal to all shared ones, or zero.

    InputError where the donor has too few rows, or rows that are not finite, and where k tokens are not shared.
    """
    copies = np.asarray(copies)
    donor_VC, shared, wanted = np.asarray(donor_VC, np.float32), np.flatnonzero(copies >= 0), missing(copies)
    if donor_VC.ndim != 2 or len(donor_VC) < len(copies):
        raise InputError(f"a donor of the shape {list(donor_VC.shape)} for {len(copies)} new tokens: give a row each")
    if not np.all(np.isfinite(donor_VC[: len(copies)])):
        raise InputError("the donor has rows that are not finite: take a sound embedding")
    if not 1 <= k <= len(shared):
        raise InputError(f"{k} tokens are to make up a new one, and {len(shared)} are shared: choose 1 to that many")
    if not len(wanted):
        return Mixture(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32), rest)
    chosen_RS, weights_RS = _pursue_all(donor_VC[wanted], donor_VC[shared], k, batch)
    return Mixture(copies[shared][np.asarray(chosen_RS)], np.asarray(weights_RS), rest)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _pursue_all(target_RC: Array, atoms_AC: Array, k: int, batch: int) -> tuple[Array, Array]:
    with jax.default_matmul_precision("highest"):
        return jax.lax.map(lambda target_C: pursue(target_C, atoms_AC, k), target_RC, batch_size=batch)


def pursue(target_C: Array, atoms_AC: Array, k: int) -> tuple[Array, Array]:
    """Orthogonal matching pursuit (Pati et al. 1993) of one vector: which atoms, int32 [S], and weights, fp32 [S].

    Each of k steps takes the atom whose direction has the largest dot product with the residual, in absolute value,
    and the residual becomes that of the least squares with all atoms taken. Where all dot products are rounding
    errors, nothing more is taken, and the weight is 0. The directions of the atoms are compared, as theory has it,
    and so an atom is its own approximation; the program of arXiv 2506.06607 compares the atoms as long as they are.
    """
    length_A = jnp.linalg.norm(atoms_AC, axis=1)
    unit_AC = atoms_AC / jnp.where(length_A > 0, length_A, 1)[:, None]
    noise = 2 * math.sqrt(k * len(target_C)) * jnp.finfo(jnp.float32).eps * jnp.linalg.norm(target_C)

    def outside(x_C, basis_SC):
        return x_C - (basis_SC @ x_C) @ basis_SC

    def step(s, state):
        basis_SC, chosen_S, taken_S = state
        score_A = jnp.abs(unit_AC @ outside(target_C, basis_SC))
        best = jnp.argmax(score_A)
        direction_C = outside(outside(unit_AC[best], basis_SC), basis_SC)  # once leaves rounding errors of the span
        direction_C /= jnp.linalg.norm(direction_C)
        take = score_A[best] > noise
        basis_SC = basis_SC.at[s].set(jnp.where(take, direction_C, 0))
        return basis_SC, chosen_S.at[s].set(best), taken_S.at[s].set(take)

    start = jnp.zeros((k, len(target_C))), jnp.zeros(k, jnp.int32), jnp.zeros(k, bool)
    basis_SC, chosen_S, taken_S = jax.lax.fori_loop(0, k, step, start)
    triangle_SS = basis_SC @ unit_AC[chosen_S].T + jnp.diag(1.0 - taken_S)
    weights_S = jax.scipy.linalg.solve_triangular(triangle_SS, basis_SC @ target_C)
    return chosen_S, jnp.where(taken_S, weights_S / length_A[chosen_S], 0)
