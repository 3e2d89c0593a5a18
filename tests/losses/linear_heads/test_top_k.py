"""Top-K of a head against NumPy in float64.

The order of what lies closer than rounding is not ours to promise, so most heads here have entries of a few bits:
their logits are exact in fp32, in whatever pieces they are summed, and equal logits are really equal.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.bins import best_width
from jaxdistill.losses.linear_heads.top_k.api import linear_top_k
from jaxdistill.losses.linear_heads.top_k.chunked import largest

U = 2.0**-24
SMALL, LARGE = 2049, 151_936


def exact_head(seed, vocab_size, *, padding=0, shape=(2, 5, 8), bias=False, **options) -> Head:
    """Logits are multiples of 2^-9 and below 2^9; padded rows would have the largest of all."""
    rng = np.random.default_rng(seed)
    B, L, D = shape
    h_BLD = rng.integers(-16, 17, size=(B, L, D)) / 8
    w_VD = rng.integers(-64, 65, size=(vocab_size + padding, D)) / 64
    h_BLD[..., 0], w_VD[vocab_size:] = 2, 0
    w_VD[vocab_size:, 0] = 128
    bias_V = jnp.asarray(rng.integers(-4, 5, size=vocab_size + padding) / 8, jnp.float32) if bias else None
    return Head(
        jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), bias_V, vocab_size=vocab_size, **options
    )


def tied_head(seed, vocab_size) -> Head:
    """Logits of about twenty different values."""
    rng = np.random.default_rng(seed)
    h_BLD, w_VD = rng.integers(-1, 2, size=(2, 5, 4)), rng.integers(-3, 4, size=(vocab_size, 4))
    return Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), vocab_size=vocab_size)


def logits(head: Head) -> np.ndarray:
    """In float64, over the real vocabulary."""
    h, w = np.asarray(head.h_BLD, np.float64), np.asarray(head.w_VD, np.float64)[: head.vocab_size]
    return head.scale * h @ w.T + (0 if head.bias_V is None else np.asarray(head.bias_V)[: head.vocab_size])


def definition(z: np.ndarray, k: int):
    """(ids, log-probabilities, log-normaliser) in float64: largest first, and of two alike the smaller id."""
    id_BLS = np.argsort(-z, axis=-1, kind="stable")[..., :k]
    top = z.max(-1)
    lse = top + np.log(np.exp(z - top[..., None]).sum(-1))
    return id_BLS, np.take_along_axis(z, id_BLS, -1) - lse[..., None], lse


def check(head: Head, k: int, **options):
    z = logits(head)
    id_BLS, logp_BLS, lse_BL = definition(z, k)
    got = jax.jit(lambda head: linear_top_k(head, k, **options))(head)
    assert (got.id_BLS.dtype, got.logp_BLS.dtype, got.lse_BL.dtype) == (jnp.int32, jnp.float32, jnp.float32)
    np.testing.assert_array_equal(got.id_BLS, id_BLS)
    # The sum of V terms, exp and log, and the rounding of lse and of the differences that enter and leave.
    error = 2 * math.sqrt(z.shape[-1]) * U + 8 * U + 2 * U * np.abs(z).max()
    np.testing.assert_allclose(got.lse_BL, lse_BL, rtol=0, atol=error)
    np.testing.assert_allclose(got.logp_BLS, logp_BLS, rtol=0, atol=error + U * np.abs(logp_BLS).max())


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
@pytest.mark.parametrize("k", [1, 2, 12, 50, 256, 700, SMALL])
def test_ids_and_probabilities_are_those_of_the_definition(k, implementation):
    check(exact_head(0, SMALL), k, implementation=implementation)


@pytest.mark.parametrize("k", [1, 7, 50, 300])
@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_of_equal_logits_the_smaller_id_comes_first(k, implementation):
    head = tied_head(1, SMALL)
    assert len(np.unique(logits(head))) < 30
    check(head, k, implementation=implementation)


@pytest.mark.parametrize("k", [1, 12, 50, 256])
def test_a_vocabulary_of_151936_is_searched_whole(k):
    check(exact_head(2, LARGE, shape=(1, 3, 8)), k, positions=2)


@pytest.mark.parametrize("positions", [1, 2, 3, 4, 5, 100, None])
def test_any_number_of_positions_in_a_chunk_gives_the_same(positions):
    check(exact_head(3, 131), 12, positions=positions)


@pytest.mark.parametrize("padding", [1, 63, 127])
@pytest.mark.parametrize("k", [12, SMALL])
@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_padded_rows_never_appear_and_never_count(padding, k, implementation):
    check(exact_head(4, SMALL, padding=padding), k, implementation=implementation)


@pytest.mark.parametrize("options", [{"bias": True}, {"scale": 0.25}, {"scale": 4.0, "bias": True}], ids=str)
def test_scale_and_bias_enter_as_written(options):
    check(exact_head(5, 300, **options), 12)


@pytest.mark.parametrize("k", [1, 50])
def test_what_a_softcap_makes_equal_is_ordered_by_id(k):
    head = exact_head(6, SMALL, softcap=0.25)
    whole = {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
    }  # or tanh rounds otherwise
    chunked, reference = (
        jax.jit(functools.partial(linear_top_k, k=k, implementation=name), compiler_options=whole)(head)
        for name in ("chunked", "reference")
    )
    assert len(np.unique(head.logits()[0, 0])) < len(np.unique(logits(head)[0, 0]))  # tanh has rounded some to one
    np.testing.assert_array_equal(chunked.id_BLS, reference.id_BLS)
    np.testing.assert_array_equal(chunked.logp_BLS, reference.logp_BLS)


def test_bfloat16_heads_give_the_float32_logits_of_their_numbers():
    head = exact_head(7, SMALL)
    narrow = dataclasses.replace(head, h_BLD=head.h_BLD.astype("bfloat16"), w_VD=head.w_VD.astype("bfloat16"))
    np.testing.assert_array_equal(narrow.w_VD.astype(jnp.float32), head.w_VD)  # a few bits: nothing is lost
    check(narrow, 50)


def test_weights_are_rounded_to_the_type_of_the_hidden_states():
    head = exact_head(7, 300)
    narrow = dataclasses.replace(head, h_BLD=head.h_BLD.astype("bfloat16"))
    finer = dataclasses.replace(narrow, w_VD=head.w_VD * (1 + 2.0**-20))
    np.testing.assert_array_equal(linear_top_k(finer, 12).logp_BLS, linear_top_k(narrow, 12).logp_BLS)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # whose bins are wide
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("columns", [1, 2, 3, 17, 128, 1000, 4097])
def test_the_largest_by_bins_are_the_largest(monkeypatch, columns, seed, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    rng = np.random.default_rng(seed)
    k = int(np.exp(rng.uniform(0, np.log(columns))))
    z_BLV = rng.integers(-columns // 4 - 1, columns // 4 + 2, size=(2, 3, columns)).astype(np.float32)
    found, at = largest(jnp.asarray(z_BLV), k)
    np.testing.assert_array_equal(at, np.argsort(-z_BLV, axis=-1, kind="stable")[..., :k])
    np.testing.assert_array_equal(found, np.take_along_axis(z_BLV, np.asarray(at), -1))


@pytest.mark.parametrize("columns", [131, SMALL, LARGE])
@pytest.mark.parametrize("k", [1, 12, 50])
def test_bins_are_as_wide_as_costs_least(columns, k):
    cost = lambda width: columns / width + k * width  # noqa: E731
    width = best_width(columns, k)
    assert cost(width) <= cost(2 * width) and (width == 1 or cost(width) <= cost(width / 2))


def test_a_token_without_finite_logits_shows_in_its_normaliser_and_nowhere_else():
    head = exact_head(8, 300)
    broken = dataclasses.replace(head, h_BLD=head.h_BLD.at[0, 2].set(jnp.nan))
    got, want = linear_top_k(broken, 12), linear_top_k(head, 12)
    bad_BL = np.isnan(got.lse_BL)
    assert bad_BL[0, 2] and bad_BL.sum() == 1
    np.testing.assert_array_equal(got.id_BLS[~bad_BL], want.id_BLS[~bad_BL])


def test_no_buffer_of_the_compiled_op_is_as_large_as_all_logits():
    def largest_buffer(implementation):
        head = exact_head(9, SMALL, shape=(2, 32, 8))
        compiled = jax.jit(lambda head: linear_top_k(head, 5, implementation=implementation, positions=4)).lower(head)
        text = compiled.compile().as_text()
        return max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w\[(\d[\d,]*)\]", text))

    assert largest_buffer("reference") >= 2 * 32 * SMALL  # so the search can find one
    assert largest_buffer("chunked") <= 2 * 4 * (SMALL + 32)  # a chunk, with the last bin filled up


@pytest.mark.parametrize("k", [0, -1, 301])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(InputError, match=rf"k is {k}; .* between 1 and .* 300"):
        jax.eval_shape(lambda head: linear_top_k(head, k), exact_head(0, 300, padding=84))


def test_an_unknown_implementation_is_refused_by_name():
    with pytest.raises(InputError, match="'sorted'"):
        linear_top_k(exact_head(0, 300), 3, implementation="sorted")
