"""The kernels behind the public ops: chunks, any order of ids and shards of the vocabulary, in both modes.

The kernels themselves are tested in test_pallas_tpu and test_pallas_mgpu; here they run interpreted.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.linear_heads import linear_picks, linear_sparse, weighted_sum
from jaxdistill.losses.linear_heads.blocks import Tile, TpuBlocks
from jaxdistill.losses.linear_heads.sparse.kernels import PallasTpu
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.targets import NO_ID, Dense
from jaxdistill.losses.z_loss import ZLoss

B, L, D, V, S = 2, 6, 16, 515, 5
SMALL = TpuBlocks(Tile(128, 256), Tile(128, 256), Tile(128, 256), chunk=128, cores=1, vmem_bytes=2**26)
KERNELS = PallasTpu(SMALL, interpret=True)


def check_equal(got, expected):
    """Every array to 1e-5 of its largest number: fp32 sums of a few hundred numbers, in another order."""
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max())


def problem(seed=0, **options):
    rng = np.random.default_rng(seed)
    h_BLD, w_VD = rng.normal(size=(B, L, D)), rng.normal(size=(V + 9, D)) / 2
    bias_V = jnp.asarray(rng.normal(size=V + 9), jnp.float32)
    head = Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), bias_V, vocab_size=V, **options)
    id_BLS = jnp.asarray(rng.integers(V, size=(B, L, S)), jnp.int32).at[0, :, 2].set(NO_ID)  # in no order, with doubles
    return head, id_BLS, jnp.asarray(rng.normal(size=(B, L, S)), jnp.float32)


def weigh(lse_BL, z_BLS, inputs):
    return lse_BL**2 / 10 + jnp.sum(inputs["weight_BLS"] * z_BLS**2, axis=-1) / 10, {"lse": lse_BL}


@pytest.mark.parametrize("how", [{"mode": "forward", "positions": 2}, {"mode": "recompute"}], ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 4.0, "scale": 0.5}], ids=str)
@pytest.mark.parametrize("T", [1.0, 2.0])
def test_the_kernels_give_what_the_definition_gives(how, options, T):
    head, id_BLS, weight_BLS = problem(**options)

    def run(**how):
        def total(head):
            return linear_sparse(weigh, head, id_BLS, {"weight_BLS": weight_BLS}, temperature=T, **how)

        (value, values), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(head)
        return value, values, gradient

    check_equal(run(implementation=KERNELS, **how), run(implementation="reference"))


def test_an_objective_of_all_kinds_takes_the_kernels_for_its_sparse_terms():
    head, id_BLS, _ = problem()
    teacher, _, _ = problem(1)
    target, weight_BL = Dense(id_BLS[..., 0] % V, teacher), jnp.ones((B, L)).at[0, 0].set(0)
    objective = Objective.of({"ce": Term(CrossEntropy()), "kl": Term(ForwardKL(2.0)), "z": Term(ZLoss())})
    knobs = {"ce": 0.7, "kl": 1.3, "z": 0.01}

    def run(implementation):
        def total(head):
            return weighted_sum(objective, head, target, weight_BL, knobs, implementation=implementation, positions=3)

        return jax.jit(jax.value_and_grad(total, has_aux=True))(head)

    check_equal(run(KERNELS), run("reference"))


@pytest.mark.parametrize("mode", ["forward", "recompute"])
def test_on_a_tpu_the_kernels_are_in_the_program(mode):
    head, id_BLS, weight_BLS = problem()
    names = {
        "forward": ("jaxdistill_sparse_statistics", "jaxdistill_sparse_gradient"),
        "recompute": ("jaxdistill_sparse_forward", "jaxdistill_sparse_backward"),
    }

    def total(head):
        kernels = PallasTpu(SMALL)
        return linear_sparse(weigh, head, id_BLS, {"weight_BLS": weight_BLS}, mode=mode, implementation=kernels)[0]

    text = jax.jit(jax.grad(total)).trace(head).lower(lowering_platforms=("tpu",)).as_text()
    assert all(name in text for name in names[mode])


def test_an_implementation_of_the_other_mode_is_refused():
    head, id_BLS, weight_BLS = problem()
    with pytest.raises(InputError, match="mode 'forward' has no implementation 'pallas_mgpu'"):
        linear_sparse(weigh, head, id_BLS, {"weight_BLS": weight_BLS}, implementation="pallas_mgpu")


def test_what_the_gpu_kernel_does_not_know_is_refused():
    head, id_BLS, _ = problem()
    with pytest.raises(InputError, match="neither a temperature nor a bias"):
        linear_picks(head, id_BLS, implementation="pallas_mgpu")
