"""The Mosaic GPU kernel, interpreted on the CPU with race detection against float64, and lowered for CUDA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from scipy.special import logsumexp

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.linear_heads.blocks import GpuBlocks, for_device
from jaxdistill.losses.linear_heads.sparse.pallas_mgpu import bins, normaliser

EPS = float(jnp.finfo(jnp.float32).eps)
BLOCKS = GpuBlocks(tokens=128, depth=64, stages=2, group=2, multiprocessors=2)

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="jax 0.10 has no public interpreter of Mosaic GPU kernels"
)


def operands(T, D, V, spread=5.0):
    rng = np.random.default_rng(V)
    h_TD = jnp.asarray(rng.normal(size=(T, D)), jnp.bfloat16)
    return h_TD, jnp.asarray(rng.normal(0, spread / D**0.5, (V, D)), jnp.bfloat16)


def logits(h_TD, w_VD, scale, softcap):
    z_TV = scale * np.asarray(h_TD, np.float64) @ np.asarray(w_VD, np.float64).T
    return z_TV if softcap is None else softcap * np.tanh(z_TV / softcap)


def error(h_TD, w_VD, scale):
    """Of a logit: products of bfloat16 are exact in fp32, so D additions, and the scale."""
    size_TV = scale * np.abs(np.asarray(h_TD, np.float64)) @ np.abs(np.asarray(w_VD, np.float64)).T
    return EPS * np.sqrt(h_TD.shape[1]) * size_TV.max()


@interpreted
@pytest.mark.parametrize(
    ("T", "D", "V", "vocab_size", "scale", "softcap"),
    [(256, 128, 768, 768, 1.0, None), (100, 64, 700, 650, 0.5, 3.0), (60, 192, 129, 129, 2.0, None)],
)
def test_normaliser_is_the_log_sum_exp_of_the_real_logits(T, D, V, vocab_size, scale, softcap):
    h_TD, w_VD = operands(T, D, V)
    interpret = plgpu.InterpretGPUParams(detect_races=True)
    keywords = dict(scale=scale, softcap=softcap, vocab_size=jnp.int32(vocab_size), blocks=BLOCKS)
    lse_T = normaliser(h_TD, w_VD, **keywords, interpret=interpret)
    expected_T = logsumexp(logits(h_TD, w_VD, scale, softcap)[:, :vocab_size], axis=1)
    tolerance = error(h_TD, w_VD, scale) + EPS * (np.sqrt(V) + 2 * np.abs(expected_T).max())
    assert tolerance < 1e-3 * expected_T.std()
    np.testing.assert_allclose(lse_T, expected_T, rtol=0, atol=tolerance)


@interpreted
def test_bins_hold_the_maximum_and_mass_of_128_consecutive_rows():
    h_TD, w_VD = operands(T=128, D=64, V=600)
    max_TX, sumexp_TX = bins(
        h_TD, w_VD, vocab_size=300, blocks=BLOCKS, interpret=plgpu.InterpretGPUParams(detect_races=True)
    )
    z_TXV = np.pad(logits(h_TD, w_VD, 1.0, None)[:, :300], ((0, 0), (0, 84)), constant_values=-np.inf)
    z_TXV = z_TXV.reshape(128, 3, 128)
    tolerance = error(h_TD, w_VD, 1.0)
    assert max_TX.shape == sumexp_TX.shape == (128, 5)
    np.testing.assert_allclose(max_TX[:, :3], z_TXV.max(2), rtol=0, atol=tolerance)
    np.testing.assert_array_equal(max_TX[:, 3:], np.float32(MASKED))
    mass_TX = np.exp(z_TXV - z_TXV.max(2, keepdims=True)).sum(2)
    np.testing.assert_allclose(sumexp_TX[:, :3], mass_TX, rtol=2 * tolerance + 128**0.5 * EPS + 20 * EPS)


@pytest.mark.parametrize("finish", [{}, {"scale": 0.5, "softcap": 30.0}], ids=["plain", "softcap"])
@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_kernel_lowers_for_cuda_where_there_is_none(kind, finish):
    def lse(h_TD, w_VD, vocab_size):
        return normaliser(h_TD, w_VD, vocab_size=vocab_size, blocks=for_device(kind), **finish)

    shapes = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((8000, 4096), (128_256, 4096)))
    traced = jax.jit(lse).trace(*shapes, jax.ShapeDtypeStruct((), jnp.int32))
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "custom_call @mosaic_gpu_v2" in program
    assert "jaxdistill_bins" in program
    assert "8000x128256" not in program


def test_input_that_the_kernel_cannot_take_is_refused_in_a_sentence():
    h_TD, w_VD = operands(T=8, D=96, V=256)
    with pytest.raises(InputError, match=r"D=96 is no multiple of 64"):
        bins(h_TD, w_VD, vocab_size=256, blocks=BLOCKS)
    with pytest.raises(InputError, match=r"multiplies bfloat16, and h is float32"):
        bins(h_TD.astype(jnp.float32), w_VD, vocab_size=256, blocks=BLOCKS)
    with pytest.raises(InputError, match=r"takes GpuBlocks"):
        bins(h_TD, w_VD, vocab_size=256, blocks=for_device("TPU v6 lite"))
    with pytest.raises(InputError, match=r"no block sizes are known for 'NVIDIA A100-SXM4-80GB'"):
        for_device("NVIDIA A100-SXM4-80GB")


@pytest.mark.parametrize("change", [{"tokens": 100}, {"depth": 48}, {"stages": 0}, {"multiprocessors": -1}])
def test_blocks_that_no_gpu_kernel_has_are_refused(change):
    with pytest.raises(InputError):
        dataclasses.replace(BLOCKS, **change)
