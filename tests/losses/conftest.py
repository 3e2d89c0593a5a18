"""What the tests of objectives share: teachers that have given logits, float64 probabilities, and an error bound.

A head with the unit matrix as embedding stands for logits: teachers then need no model.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.head import Head
from jaxdistill.losses.lazy import Lazy
from jaxdistill.losses.targets import Dense, TopK

U = 2.0**-24


def head_of(z_BLV, padding=0) -> Head:
    """The head whose logits are these; its padded columns would be 1000 if they counted."""
    vocab_size = z_BLV.shape[-1]
    h_BLD = np.concatenate([z_BLV, np.ones((*z_BLV.shape[:2], 1))], axis=-1)
    w_VD = np.concatenate([np.eye(vocab_size, vocab_size + 1), 1000 * np.ones((padding, vocab_size + 1))])
    return Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), vocab_size=vocab_size)


@pytest.fixture(scope="session")
def draw():
    """draw(seed, spread, vocab_size) -> fp32 logits [2, 3, V]."""

    def draw(seed, spread=1.0, vocab_size=33, shape=(2, 3)):
        return (spread * np.random.default_rng(seed).normal(size=(*shape, vocab_size))).astype(np.float32)

    return draw


@pytest.fixture(scope="session")
def teach():
    """teach(z_BLV, label_BL, padding, **logits of references) -> a Dense target."""

    def teach(z_BLV, label_BL=None, padding=0, **references):
        label_BL = np.zeros(z_BLV.shape[:2]) if label_BL is None else label_BL
        heads = {name: head_of(z) for name, z in references.items()}
        return Dense(jnp.asarray(label_BL, jnp.int32), head_of(z_BLV, padding), heads)

    return teach


@pytest.fixture(scope="session")
def top_of():
    """top_of(z_BLV, k, label_BL) -> the TopK target of a teacher with these logits."""

    def top_of(z_BLV, k, label_BL=None):
        label_BL = np.zeros(z_BLV.shape[:2]) if label_BL is None else label_BL
        logp_BLV = special.log_softmax(np.float64(z_BLV), axis=-1)
        id_BLS = np.argsort(-logp_BLV, axis=-1, kind="stable")[..., :k]
        rest_BL = np.exp(logp_BLV).sum(-1) - np.exp(np.take_along_axis(logp_BLV, id_BLS, -1)).sum(-1)
        logtail_BL = np.log(rest_BL) if k < z_BLV.shape[-1] else np.full(z_BLV.shape[:2], -1e30)
        logp_BLS = np.take_along_axis(logp_BLV, id_BLS, -1)
        arrays = (label_BL, np.int32), (id_BLS, np.int32), (logp_BLS, np.float32), (logtail_BL, np.float32)
        return TopK(*(jnp.asarray(x, dtype) for x, dtype in arrays))

    return top_of


@pytest.fixture(scope="session")
def logs():
    """logs(*z, T) -> their log-probabilities at temperature T, float64."""

    def logs(*z, T=1.0):
        return [special.log_softmax(np.float64(x) / T, axis=-1) for x in z]

    return logs


@pytest.fixture(scope="session")
def both():
    """both(loss, z_BLV, target) -> (loss of each token, gradient of their sum in the logits), as one program."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(loss, z_BLV, target):
        def total(z_BLV):
            loss_BL = loss(z_BLV, target)
            return loss_BL.sum(), loss_BL

        slope_BLV, loss_BL = jax.grad(total, has_aux=True)(z_BLV)
        return loss_BL, slope_BLV

    def both(loss, z_BLV, target):
        if isinstance(target, Lazy):  # no tree of arrays: it closes over them
            run_here = jax.jit(lambda z_BLV: run.__wrapped__(loss, z_BLV, target))
            return [np.asarray(x) for x in run_here(jnp.asarray(z_BLV))]
        return [np.asarray(x) for x in run(loss, jnp.asarray(z_BLV), target)]

    return both


@pytest.fixture(scope="session")
def gradient(both):
    """gradient(loss, z_BLV, target) -> of the sum over tokens, in the logits."""
    return lambda loss, z_BLV, target: both(loss, z_BLV, target)[1]


@pytest.fixture(scope="session")
def bound():
    """bound(log_p, log_q, T): what fp32 may get wrong in a divergence of two distributions, or in T times its gradient.

    Every log is off by d = (2 sqrt(V) + 4 max |log|) u: the normaliser, the subtraction, and the logits as they were
    rounded. A sum of p f(log p - log q), with f' at most 1, is then off by d (2 + max |log p - log q|).
    """

    def bound(log_p, log_q, T=1.0):
        largest = max(np.abs(log_p).max(), np.abs(log_q).max())
        error = (2 * np.sqrt(log_p.shape[-1]) + 4 * largest) * U
        return T**2 * error * (2 + np.abs(log_p - log_q).max())

    return bound
