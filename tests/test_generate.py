"""Generation: the tokens a loop over the training forward would choose, with its log-probabilities."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxdistill.errors import InputError
from jaxdistill.generate import Sampling, generate, make_generate
from jaxdistill.head import MASKED
from jaxdistill.models.transformer import Config, Transformer

U = 2.0**-24
V, STOP = 41, 7
MODEL = Transformer(Config(V, 2, 16, 2, 8, 24, vocab_multiple=8))
DRAW = np.random.default_rng(0)
PROMPTS = [DRAW.integers(V, size=size).astype(np.int32) for size in (3, 9, 1, 5, 12)]


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def continued(params):
    """continued(prompts, sampling, stop, max_tokens, size, seed) -> texts."""
    compiled = {}

    def run(prompts=PROMPTS, sampling=None, stop=(), max_tokens=10, size=8, seed=0):
        which = sampling, stop, max_tokens
        step = compiled.setdefault(which, jax.jit(make_generate(MODEL, *which)))
        return generate(
            lambda buffer, key_B: step(params, buffer, key_B), prompts, max_tokens=max_tokens, size=size, seed=seed
        )

    return run


@pytest.fixture(scope="module")
def logits(params):
    """logits(ids) -> those of every position, float64, by the training forward."""
    forward = jax.jit(lambda tokens_BL: MODEL.head(params, MODEL.hidden(params, tokens_BL)[0]).logits())

    def of(ids):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(ids)] = ids
        return np.float64(forward(padded))[0, : len(ids), :V]

    return of


def test_without_sampling_every_token_is_the_most_probable_one(continued, logits):
    for prompt, text in zip(PROMPTS, continued(), strict=True):
        ids = list(prompt)
        for _ in range(10):
            ids.append(int(logits(ids)[-1].argmax()))
        np.testing.assert_array_equal(text.ids, ids[len(prompt) :])
        assert not text.stopped


@pytest.mark.parametrize("sampling", [None, Sampling(), Sampling(0.7, top_k=5), Sampling(2.0, top_p=0.5)])
def test_log_probabilities_are_those_of_the_training_forward(continued, logits, sampling):
    for prompt, text in zip(PROMPTS, continued(sampling=sampling), strict=True):
        logq = special.log_softmax(logits([*prompt, *text.ids])[len(prompt) - 1 : -1], axis=-1)
        expected = logq[np.arange(len(text.ids)), text.ids]
        # the same fp32 program on rows of another length: matmuls over at most 24 columns, logits below 8
        np.testing.assert_allclose(text.logp, expected, rtol=0, atol=8 * 100 * U)


def test_a_text_ends_with_its_stop_token_and_the_others_go_on(continued):
    free = continued(sampling=Sampling(3.0), seed=1, max_tokens=20)
    stop = int(free[1].ids[4])
    found = continued(sampling=Sampling(3.0), seed=1, max_tokens=20, stop=(stop, V - 1))
    for before, after in zip(free, found, strict=True):
        ends = np.flatnonzero((before.ids == stop) | (before.ids == V - 1))
        expected = before.ids[: ends[0] + 1] if len(ends) else before.ids
        np.testing.assert_array_equal(after.ids, expected)
        assert after.stopped == bool(len(ends))
        assert after.logp.shape == after.ids.shape
    assert {text.stopped for text in found} == {True, False}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_neither_the_batch_nor_other_prompts_change_a_text(continued, size):
    base = continued(sampling=Sampling(), seed=3)
    other = [*PROMPTS[:2], PROMPTS[0][:2], *PROMPTS[3:]]
    for prompts in (PROMPTS, other):
        found = continued(prompts=prompts, sampling=Sampling(), seed=3, size=size)
        for number in (0, 1, 3, 4):
            np.testing.assert_array_equal(found[number].ids, base[number].ids)


def test_a_seed_decides_and_another_one_decides_otherwise(continued):
    one, again, other = (continued(sampling=Sampling(), seed=seed) for seed in (4, 4, 5))
    assert all((a.ids == b.ids).all() for a, b in zip(one, again, strict=True))
    assert any((a.ids != b.ids).any() for a, b in zip(one, other, strict=True))


def test_the_first_tokens_of_many_texts_follow_the_distribution(continued, logits):
    sampling = Sampling(1.5, top_k=6)
    texts = continued(prompts=[PROMPTS[0]] * 2000, sampling=sampling, max_tokens=1, size=500)
    drawn = np.bincount([int(text.ids[0]) for text in texts], minlength=V)
    z = logits(PROMPTS[0])[-1] / 1.5
    kept = np.argsort(-z)[:6]
    assert drawn[np.setdiff1d(np.arange(V), kept)].sum() == 0
    assert stats.chisquare(drawn[kept], 2000 * special.softmax(z[kept])).pvalue > 0.001


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p):
    z_BV = (2 * np.random.default_rng(1).normal(size=(6, 33))).astype(np.float32)
    kept_BV = np.asarray(Sampling(top_p=top_p)(jnp.asarray(z_BV))) > MASKED / 2
    p_BV = special.softmax(np.float64(z_BV), axis=-1)
    for p_V, kept_V in zip(p_BV, kept_BV, strict=True):
        assert p_V[kept_V].sum() >= top_p - 33 * U
        assert p_V[kept_V].sum() - p_V[kept_V].min() < top_p  # without the last of them it would not
        assert kept_V.all() or p_V[kept_V].min() > p_V[~kept_V].max()


def test_top_k_and_top_p_follow_one_another():
    p_V = np.array([0.4, 0.3, 0.2, 0.1])
    z_BV = jnp.log(jnp.asarray(p_V[None]))
    kept = np.asarray(Sampling(top_k=3, top_p=0.75)(z_BV))[0] > MASKED / 2
    np.testing.assert_array_equal(kept, [True, True, False, False])  # of the three, 0.4 and 0.3 have 7/9
    assert (np.asarray(Sampling(top_k=9)(z_BV)) > MASKED / 2).all()


def test_the_most_probable_token_is_never_left_out(continued):
    greedy = continued()
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-6)):
        for a, b in zip(continued(sampling=sampling, seed=9), greedy, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"temperature": 0.0}, "temperature is 0.0"), ({"top_k": 0}, "top_k is 0"), ({"top_p": 1.5}, "top_p is 1.5")],
)
def test_numbers_that_mean_nothing_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Sampling(**options)


def test_an_empty_prompt_is_refused(continued):
    with pytest.raises(InputError, match="prompt 1 is empty"):
        continued(prompts=[PROMPTS[0], PROMPTS[0][:0]])


SHARDED = """
import dataclasses, sys, jax, numpy as np
from jaxdistill.generate import Sampling, generate, make_generate
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
mesh = Mesh(fsdp=4, tensor=2).build()
model = Transformer(Config(41, 2, 16, 2, 8, 24, vocab_multiple=8), shard=rules.constrain(mesh))
shardings = rules.shardings(jax.eval_shape(model.init, jax.random.key(0)), mesh)
params = jax.device_put(jax.jit(model.init)(jax.random.key(0)), shardings)
step = jax.jit(make_generate(model, Sampling(), (), 10))
prompts = [np.array([int(i) for i in line.split()], np.int32) for line in sys.argv[1].splitlines()]
for text in generate(lambda buffer, key_B: step(params, buffer, key_B), prompts, max_tokens=10):
    print(*text.ids)
"""


def test_eight_devices_draw_the_tokens_of_one(continued):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    given = "\n".join(" ".join(map(str, prompt)) for prompt in PROMPTS)
    done = subprocess.run([sys.executable, "-c", SHARDED, given], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert found == [text.ids.tolist() for text in continued(sampling=Sampling())]
