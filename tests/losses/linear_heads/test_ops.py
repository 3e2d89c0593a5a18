"""linear_sparse, linear_picks and linear_divergence: every mode against float64 NumPy, tiles, chunks and bad input.

Bounds are those of test_weighted_sum: an error of a few roundings u = 2^-24 for each number that enters, times the
square root of how many there are.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy import special

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.linear_heads import Sharding, linear_divergence, linear_picks, linear_sparse, tiles, weighted_sum
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.sorted_l1 import SortedL1
from jaxdistill.losses.targets import NO_ID, Dense

U = 2.0**-24
B, L, D = 2, 5, 16


@pytest.fixture(params=[None, 64, 100, 1000], ids=lambda columns: f"tiles of {columns}")
def tiled(request, monkeypatch):
    """Tiles of the whole vocabulary, of widths that divide nothing, and of widths that overlap almost wholly."""
    if request.param is not None:
        monkeypatch.setattr(tiles, "NARROWEST", request.param)
        monkeypatch.setattr(tiles, "TILE_LOGITS", {"gpu": 1, "cpu": 1, "tpu": 1})
        jax.clear_caches()


def case(V, S, *, spread=1.0, seed=0, dtype="float32", padding=0, **options):
    """(head, ids [B, L, S] without duplicates of which some are NO_ID, weights of the ids)."""
    rng = np.random.default_rng(seed)
    h_BLD, w_VD = rng.normal(size=(B, L, D)), rng.normal(size=(V + padding, D)) * spread / 4
    w_VD[V:] = 1000
    bias_V = jnp.asarray(rng.normal(size=V + padding), jnp.float32)
    head = Head(jnp.asarray(h_BLD, dtype), jnp.asarray(w_VD, dtype), bias_V, vocab_size=V, **options)
    id_BLS = np.sort(np.stack([rng.choice(V, size=S, replace=False) for _ in range(B * L)]).reshape(B, L, S), axis=-1)
    id_BLS[:, 1, S // 2 :] = NO_ID
    return head, jnp.asarray(id_BLS, jnp.int32), jnp.asarray(rng.uniform(size=(B, L, S)) / S, jnp.float32)


def weigh(lse_BL, z_BLS, inputs):
    """Not linear in either: the cotangents depend on the values, and differ for every token."""
    loss_BL = lse_BL**2 / 10 + jnp.sum(inputs["weight_BLS"] * z_BLS**2, axis=-1)
    return loss_BL, {"lse": lse_BL}


def by_hand(head, id_BLS, weight_BLS, T):
    """float64: total, dh, dw, dbias of `weigh`, with the gradient written out."""
    h, w, bias = (np.asarray(x, np.float64) for x in (head.h_BLD, head.w_VD, head.bias_V))
    w, bias = w[: head.vocab_size], bias[: head.vocab_size]
    x = head.scale * (h @ w.T) + bias
    z, slope = x, np.ones_like(x)
    if head.softcap is not None:
        z = head.softcap * np.tanh(x / head.softcap)
        slope = 1 - (z / head.softcap) ** 2
    lse = special.logsumexp(z / T, axis=-1)
    ids, here = np.asarray(id_BLS), np.asarray(id_BLS) < head.vocab_size
    picked = np.take_along_axis(z, np.where(here, ids, 0), axis=-1) * here
    weight = np.asarray(weight_BLS, np.float64)
    dz = (lse / 5)[..., None] * np.exp(z / T - lse[..., None]) / T
    np.add.at(dz, (*np.indices(ids.shape)[:2], np.where(here, ids, 0)), 2 * weight * picked * here)
    dx = dz * slope
    rows = head.w_VD.shape[0] - head.vocab_size
    return {
        "total": (lse**2 / 10 + (weight * picked**2).sum(-1)).sum(),
        "dh": head.scale * dx @ w,
        "dw": np.pad(head.scale * np.einsum("blv,bld->vd", dx, h), ((0, rows), (0, 0))),
        "dbias": np.pad(dx.sum((0, 1)), (0, rows)),
    }


def got(head, id_BLS, weight_BLS, T=1.0, **how):
    def total(head):
        return linear_sparse(weigh, head, id_BLS, {"weight_BLS": weight_BLS}, temperature=T, **how)[0]

    value, gradient = jax.jit(jax.value_and_grad(total))(head)
    return {"total": value, "dh": gradient.h_BLD, "dw": gradient.w_VD, "dbias": gradient.bias_V}


def check(got, expected, tolerance):
    for name, value in expected.items():
        error = np.linalg.norm(np.asarray(got[name], np.float64) - value) / np.linalg.norm(value)
        assert error <= tolerance, f"{name}: relative error {error:.2g}"


# lse and z are off by about u |z|, and dz by as much relative to itself; sums over D, V and tokens add sqrt(n) u.
def tolerance(spread, V):
    return U * (8 * np.sqrt(V) + 16 * spread * 4)


@pytest.mark.parametrize("how", [{"mode": "forward", "positions": 2}, {"implementation": "reference"}], ids=str)
@pytest.mark.parametrize("S", [1, 12, 50, 256])
def test_any_number_of_ids_gives_the_sum_and_its_gradient(how, S):
    args = case(2049, S, spread=3.0)
    check(got(*args, **how), by_hand(*args, 1.0), tolerance(3.0, 2049))


@pytest.mark.parametrize("S", [1, 50])
def test_recomputing_over_tiles_gives_the_same(tiled, S):
    args = case(1100, S, spread=3.0)
    check(got(*args, mode="recompute"), by_hand(*args, 1.0), tolerance(3.0, 1100))


@pytest.mark.parametrize("mode", ["forward", "recompute"])
@pytest.mark.parametrize("spread", [0.1, 10.0, 30.0])
def test_small_and_large_logits_keep_their_digits(mode, spread):
    args = case(2049, 12, spread=spread)
    check(got(*args, mode=mode), by_hand(*args, 1.0), tolerance(spread, 2049))


@pytest.mark.parametrize("mode", ["forward", "recompute"])
@pytest.mark.parametrize(
    "options", [{"softcap": 5.0}, {"scale": 0.125}, {"padding": 63, "softcap": 3.0, "scale": 2.0}], ids=str
)
@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_scale_softcap_padding_and_temperature_enter_as_written(tiled, mode, options, T):
    args = case(515, 12, **options)
    result = got(*args, T=T, mode=mode)
    check(result, by_hand(*args, T), tolerance(3.0 / min(T, 1), 515))
    assert not np.any(result["dw"][515:]) and not np.any(result["dbias"][515:])


@pytest.mark.parametrize("V", [32_000, 128_256, 151_936])
@pytest.mark.parametrize("mode", ["forward", "recompute"])
def test_vocabularies_of_public_models(mode, V):
    args = case(V, 50)
    check(got(*args, mode=mode), by_hand(*args, 1.0), tolerance(1.0, V))


@pytest.mark.parametrize("mode", ["forward", "recompute"])
def test_all_ids_of_a_small_vocabulary_may_be_asked_for(mode):
    args = case(50, 50)
    check(got(*args, mode=mode), by_hand(*args, 1.0), tolerance(1.0, 50))


@pytest.mark.parametrize("mode", ["forward", "recompute"])
def test_bfloat16_rounds_only_what_enters_a_matmul(mode):
    args = case(2049, 12, dtype="bfloat16")
    result = got(*args, mode=mode)
    check({"total": result["total"]}, {"total": by_hand(*args, 1.0)["total"]}, tolerance(1.0, 2049))
    check(result, by_hand(*args, 1.0), 2.0**-7)
    assert result["dh"].dtype == result["dw"].dtype == jnp.bfloat16


def test_the_gradient_of_a_pick_nobody_asked_for_is_zero():
    head, id_BLS, _ = case(515, 6)
    _, pull_back = jax.vjp(lambda head: linear_picks(head, jnp.full_like(id_BLS, NO_ID)), head)
    z_BLS = linear_picks(head, jnp.full_like(id_BLS, NO_ID))[1]
    (gradient,) = pull_back((jnp.zeros((B, L)), jnp.ones_like(z_BLS)))
    assert not np.any(z_BLS) and all(not np.any(x) for x in jax.tree.leaves(gradient))


def test_picks_take_a_cotangent_for_every_token(tiled):
    head, id_BLS, weight_BLS = case(1100, 12)
    dlse_BL = jnp.asarray(np.random.default_rng(1).normal(size=(B, L)), jnp.float32)

    def gradient(implementation):
        _, pull_back = jax.vjp(lambda head: linear_picks(head, id_BLS, implementation=implementation), head)
        return pull_back((dlse_BL, weight_BLS))[0]

    for fast, slow in zip(jax.tree.leaves(gradient(None)), jax.tree.leaves(gradient("reference")), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=0, atol=64 * U * np.abs(slow).max())


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_a_divergence_over_tiles_is_that_over_chunks_and_its_definition(tiled, T):
    head, id_BLS, _ = case(1100, 1, padding=31)
    teacher, _, _ = case(1100, 1, seed=1, spread=2.0, padding=7)
    weight_BL = jnp.asarray(np.random.default_rng(2).uniform(size=(B, L)), jnp.float32)

    def run(**how):
        def total(head):
            return linear_divergence(ForwardKL(T), head, teacher, weight_BL, label_BL=id_BLS[..., 0], **how)

        (value, each), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(head)
        return {"total": value, "each": each, "dh": gradient.h_BLD, "dw": gradient.w_VD, "dbias": gradient.bias_V}

    expected = {name: np.asarray(x, np.float64) for name, x in run(implementation="reference").items()}
    for how in ({"mode": "forward", "positions": 2}, {"mode": "recompute"}):
        check(run(**how), expected, 2 * tolerance(3.0 / min(T, 1), 1100))


def temp_bytes(length, V=8192, **how):
    shapes = (jax.ShapeDtypeStruct((1, length, D), jnp.float32), jax.ShapeDtypeStruct((V, D), jnp.float32))
    ids, weights = jax.ShapeDtypeStruct((1, length, 8), jnp.int32), jax.ShapeDtypeStruct((1, length, 8), jnp.float32)

    def total(h_BLD, w_VD, id_BLS, weight_BLS):
        head = Head(h_BLD, w_VD, vocab_size=V)
        return linear_sparse(weigh, head, id_BLS, {"weight_BLS": weight_BLS}, **how)[0]

    compiled = jax.jit(jax.grad(total, (0, 1))).lower(*shapes, ids, weights).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_tokens_times_vocabulary():
    logits = 4 * 2048 * 8192
    whole = temp_bytes(2048, implementation="reference")
    assert whole > logits
    assert temp_bytes(2048) < whole / 4 and temp_bytes(2048, mode="recompute") < whole / 8
    grown = temp_bytes(4096, mode="recompute") - temp_bytes(2048, mode="recompute")
    assert grown < 0.05 * logits  # what the hidden states and ids of 2048 more tokens take


def test_an_axis_of_one_device_splits_no_vocabulary_and_so_hinders_no_sorting():
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    (head, id_BLS, _), (teacher, _, _) = case(515, 1), case(515, 1, seed=1)
    objective, weight_BL = Objective.of({"uld": Term(SortedL1())}), jnp.ones((B, L))

    def total(sharding):
        target = Dense(id_BLS[..., 0] % 515, teacher)
        return weighted_sum(objective, head, target, weight_BL, {"uld": 1.0}, sharding=sharding)[0]

    one_device = Sharding(mesh, sequences=("data", "fsdp"), vocabulary=("tensor",), width=("fsdp",))
    np.testing.assert_allclose(total(one_device), total(Sharding()), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id_BLS": jnp.zeros((B, L), jnp.int32)}, r"ids are int32\[2, 5\]; .* integers \[2, 5, S\]"),
        ({"id_BLS": jnp.zeros((B, L, 3))}, r"ids are float32\[2, 5, 3\]"),
        ({"id_BLS": jnp.zeros((B, L + 1, 3), jnp.int32)}, r"ids are int32\[2, 6, 3\]"),
        ({"id_BLS": jnp.full((B, L, 3), 515, jnp.int32)}, "id 515 is outside the vocabulary of 515; .* is NO_ID"),
        ({"id_BLS": jnp.full((B, L, 3), -100, jnp.int32)}, "id -100 is outside the vocabulary of 515"),
        ({"mode": "backward"}, "no 'backward' here; there are 'forward', 'recompute'"),
        (
            {"implementation": "fused"},
            "mode 'forward' has no implementation 'fused'; there are 'chunked', 'pallas_tpu', 'reference'",
        ),
    ],
)
def test_bad_input_is_refused_when_traced_with_shapes_in_the_sentence(change, sentence):
    head, id_BLS, weight_BLS = case(515, 3)
    arguments = {"id_BLS": id_BLS, "mode": "forward", "implementation": None} | change
    with pytest.raises(InputError, match=re.compile(sentence)):
        linear_sparse(weigh, head, arguments.pop("id_BLS"), {"weight_BLS": weight_BLS}, **arguments)


@pytest.mark.parametrize("weight_BL", [jnp.ones((B, L), jnp.bfloat16), jnp.ones((B, L + 1)), jnp.ones((B, L, 1))])
def test_weights_that_do_not_fit_or_would_lose_the_sum_are_refused(weight_BL):
    head, _, _ = case(515, 1)
    with pytest.raises(InputError, match=r"weights are b?float(16|32)\[.*\]; .* needs float32\[2, 5\]"):
        linear_divergence(ForwardKL(), head, head, weight_BL)


def test_heads_of_two_vocabularies_cannot_be_compared():
    head, _, _ = case(515, 1)
    teacher = dataclasses.replace(head, vocab_size=514)
    with pytest.raises(InputError, match="vocabulary of 514 and the student of 515"):
        linear_divergence(ForwardKL(), head, teacher, jnp.ones((B, L)), mode="recompute")
