"""JAX's attention kernels for TPU, interpreted, against blocks of queries; the TPU compiles them in tests/planning."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import attention, splash
from jaxdistill.models.design import AttentionDesign, Design, Window
from jaxdistill.models.transformer import Transformer
from jaxdistill.models.variant import Variant
from jaxdistill.shard import Shard

L = 256
SEGMENTS = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 1, 1, 1]], L // 4, axis=1), jnp.int32)
CONFIG = Variant(
    vocab_size=64, num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_size=16, mlp_width=32, qk_norm=False,
    design=Design(attention=AttentionDesign(window=Window(100, layers=(0,)), softcap=20.0)),
)  # fmt: skip


def random_qkv():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, L, heads, 16)), jnp.float32) for heads in (4, 2, 2)]


@pytest.mark.parametrize(("softcap", "window"), [pytest.param(None, None, marks=pytest.mark.slow), (0.7, 50)])
def test_values_and_gradients_are_those_of_blocks(softcap, window):
    mask = attention.causal_mask(SEGMENTS, L, window)

    def blocks(*qkv):
        return attention.attend(*qkv, mask, 0.3, softcap)

    def kernels(*qkv):
        return splash.attend(*qkv, SEGMENTS, Shard(), scale=0.3, softcap=softcap, window=window)

    out, pull_back = jax.vjp(blocks, *random_qkv())
    other, other_pull_back = jax.vjp(kernels, *random_qkv())
    np.testing.assert_allclose(other, out, rtol=0, atol=2e-6)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=out.shape), jnp.float32)
    for ours, theirs in zip(pull_back(cotangent), other_pull_back(cotangent), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_layers_with_and_without_a_window_take_their_own_kernel():
    tokens = jnp.asarray(np.random.default_rng(2).integers(64, size=(2, L)), jnp.int32)
    blocks = Transformer(CONFIG, implementation="blocks")
    kernels = dataclasses.replace(blocks, implementation="splash")
    params = blocks.init(jax.random.key(0))
    expected, _ = blocks.hidden(params, tokens, SEGMENTS)
    found, _ = kernels.hidden(params, tokens, SEGMENTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    shorter, _ = kernels.hidden(params, tokens[:, :100], SEGMENTS[:, :100])  # no whole blocks: not by kernels
    np.testing.assert_allclose(shorter, expected[:, :100], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_sequences_heads_and_positions_on_four_devices_have_the_gradient_of_one():
    script = pathlib.Path(__file__).with_name("splash_on_devices.py")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    apart = [float(line) for line in result.stdout.split()]
    assert len(apart) == 2 and max(apart) < 1e-5
