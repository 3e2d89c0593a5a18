"""Scores over a corpus: the means of its tokens, whatever the batches and the devices."""

import os
import pathlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxdistill.data.windows import Batch, Windows
from jaxdistill.errors import InputError
from jaxdistill.evals import make_sums, per_token, score
from jaxdistill.evals.scores import head_of
from jaxdistill.losses.linear_heads import Sharding
from jaxdistill.models.transformer import Config, Transformer

V, EOS, LENGTH = 37, 36, 10
STUDENT = Transformer(Config(V, 2, 16, 2, 8, 24, vocab_multiple=8))
TEACHER = Transformer(Config(V, 2, 24, 2, 8, 32, vocab_multiple=1))
SCRIPT = pathlib.Path(__file__).with_name("scores_on_devices.py")


@pytest.fixture(scope="module")
def windows():
    """Documents of some ten tokens in 13 windows; labels that open a document do not count."""
    draw = np.random.default_rng(0)
    tokens_T = draw.integers(EOS, size=125).astype(np.uint16)
    tokens_T[draw.random(125) < 0.1] = EOS
    return Windows(tokens_T, LENGTH, EOS)


@pytest.fixture(scope="module")
def frozen():
    return jax.jit(STUDENT.init)(jax.random.key(1)), jax.jit(TEACHER.init)(jax.random.key(2))


def batches(windows, size):
    padded = np.pad(np.arange(len(windows)), (0, -len(windows) % size), constant_values=-1)
    return [windows.batch(rows) for rows in padded.reshape(-1, size)]


def scores(windows, frozen, size, **options):
    sums = jax.jit(make_sums(STUDENT, TEACHER, **options))
    return score(lambda batch: sums(*frozen, batch), batches(windows, size))


def test_the_means_are_those_of_the_tokens_that_count(windows, frozen):
    (whole,) = batches(windows, len(windows))
    found = scores(windows, frozen, 4, bins=5)
    values = per_token(head_of(STUDENT, frozen[0], whole), whole.label_BL, head_of(TEACHER, frozen[1], whole))
    counts = whole.weight_BL == 1
    assert found.tokens == counts.sum()
    for name, value_BL in values.items():
        expected = np.float64(value_BL)[counts].mean()
        # fp32 sums of at most 40 numbers in a batch, and logits of another batch's matmul over 24 columns
        np.testing.assert_allclose(found.mean[name], expected, rtol=200 * 2.0**-24, err_msg=name)
    for who, prefix in (("model", ""), ("teacher", "teacher_")):
        diagram = found.reliability[who]
        assert sum(diagram.count) == counts.sum()
        right = sum(count * accuracy for count, _, accuracy in diagram.filled)
        assert right == pytest.approx(np.asarray(values[f"{prefix}correct"])[counts].sum())


@pytest.mark.parametrize("size", [1, 5, 16])
def test_the_size_of_a_batch_does_not_matter(windows, frozen, size):
    base, found = scores(windows, frozen, 4), scores(windows, frozen, size)
    assert found.tokens == base.tokens
    for name, value in base.mean.items():
        np.testing.assert_allclose(found.mean[name], value, rtol=200 * 2.0**-24, err_msg=name)


def test_a_model_alone_is_scored_without_a_teacher(windows, frozen):
    sums = jax.jit(make_sums(STUDENT))
    found = score(lambda batch: sums(frozen[0], None, batch), batches(windows, 4))
    assert found.mean.keys() == {"loss", "entropy", "confidence", "correct"}
    assert found.reliability.keys() == {"model"}
    np.testing.assert_allclose(found.mean["loss"], scores(windows, frozen, 4).mean["loss"], rtol=200 * 2.0**-24)


def test_what_a_token_of_weight_zero_holds_does_not_matter(frozen):
    tokens = np.random.default_rng(3).integers(V, size=(2, LENGTH + 1)).astype(np.int32)
    ones = np.ones((2, LENGTH), np.int32)
    weight_BL = np.ones((2, LENGTH), np.float32)
    weight_BL[1] = 0
    position_BL = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (2, LENGTH))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], weight_BL, ones, position_BL)
    one_row = jax.tree.map(lambda x: x[:1], batch)
    sums = jax.jit(make_sums(STUDENT))
    both, alone = (score(lambda b: sums(frozen[0], None, b), [b]) for b in (batch, one_row))
    np.testing.assert_allclose(both.mean["loss"], alone.mean["loss"], rtol=200 * 2.0**-24)
    assert both.tokens == alone.tokens == LENGTH


def test_text_in_which_nothing_counts_is_refused(windows, frozen):
    empty = windows.batch(np.array([-1, -1]))
    sums = jax.jit(make_sums(STUDENT))
    with pytest.raises(InputError, match="no token to score"):
        score(lambda batch: sums(frozen[0], None, batch), [empty])
    with pytest.raises(InputError, match="no token to score"):
        score(lambda batch: sums(frozen[0], None, batch), [])


def test_a_diagram_without_bins_is_refused():
    with pytest.raises(InputError, match="bins is 0"):
        make_sums(STUDENT, bins=0)


@pytest.fixture(scope="module")
def on_one_device():
    return runpy.run_path(str(SCRIPT))["results"](Sharding())


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scores")
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, SCRIPT, directory], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: dict(np.load(directory / f"{name}.npz")) for name in ("tokens", "vocabulary", "all")}


@pytest.mark.parametrize("layout", ["tokens", "vocabulary", "all"])
def test_eight_devices_find_what_one_finds(on_one_device, on_eight_devices, layout):
    assert on_one_device.keys() == on_eight_devices[layout].keys()
    for name, value_BL in on_one_device.items():
        # the sums over V = 150 and D = 16 in another order; the values lie below 10
        atol = 0 if "correct" in name or name == "agreement" else 10 * (150 + 16) * 2.0**-24
        np.testing.assert_allclose(on_eight_devices[layout][name], value_BL, rtol=0, atol=atol, err_msg=name)
