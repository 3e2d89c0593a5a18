"""Values of tokens: those of whole logits, and gradients of any function of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.head import Head
from jaxdistill.losses.boundary import BoundaryMass, Bounded
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.linear_heads import token_values

B, L, D, V, PADDED = 2, 7, 8, 29, 32
U = 2.0**-24
LOSSES = {"surprise": CrossEntropy(), "boundary": BoundaryMass()}


def case(spread=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    head = Head(
        jnp.asarray(spread * rng.normal(size=(B, L, D)), dtype),
        jnp.asarray(rng.normal(size=(PADDED, D)), jnp.float32),
        jnp.asarray(rng.normal(size=PADDED), jnp.float32),
        vocab_size=V,
    )
    is_boundary_V = jnp.asarray(np.pad(rng.random(V) < 0.3, (0, PADDED - V)))
    target = Bounded(jnp.asarray(rng.integers(V, size=(B, L)), jnp.int32), is_boundary_V)
    weight_BL = jnp.asarray(rng.choice([0.0, 1.0, 1.0], size=(B, L)), jnp.float32)
    return head, target, weight_BL


def mixed(values):
    """No sum over tokens: a token's derivative depends on the others."""
    return jnp.sum(jnp.tanh(values["surprise"].sum(1) / L) * values["boundary"].sum(1)) + jnp.sum(
        values["surprise"] ** 2
    )


def on_logits(head, target, weight_BL):
    logp_BLV = jax.nn.log_softmax(head.logits())
    surprise_BL = -jnp.take_along_axis(logp_BLV, target.label_BL[..., None], axis=-1)[..., 0]
    boundary_BL = jax.nn.logsumexp(jnp.where(target.is_boundary_V, logp_BLV, -jnp.inf), axis=-1)
    return {"surprise": jnp.where(weight_BL > 0, surprise_BL, 0), "boundary": jnp.where(weight_BL > 0, boundary_BL, 0)}


@pytest.mark.parametrize("positions", [None, 3])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_values_and_gradients_are_those_of_whole_logits(spread, positions):
    head, target, weight_BL = case(spread)
    streamed = lambda head: mixed(token_values(LOSSES, head, target, weight_BL, positions=positions))  # noqa: E731
    whole = lambda head: mixed(on_logits(head, target, weight_BL))  # noqa: E731
    scale = float(jnp.abs(head.logits()[..., :V]).max())
    for name, value_BL in token_values(LOSSES, head, target, weight_BL, positions=positions).items():
        expected_BL = on_logits(head, target, weight_BL)[name]
        np.testing.assert_allclose(value_BL, expected_BL, rtol=0, atol=(V + 4 * scale) * U)
    got, expected = jax.jit(jax.grad(streamed))(head), jax.jit(jax.grad(whole))(head)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=64 * (V + 4 * scale) * U * np.abs(theirs).max())


def test_tokens_without_weight_pass_no_gradient_even_where_they_hold_no_number():
    head, target, weight_BL = case()
    h_BLD = jnp.where((weight_BL == 0)[..., None], jnp.nan, head.h_BLD)
    spoilt = Head(h_BLD, head.w_VD, head.bias_V, vocab_size=V)
    total = lambda head: mixed(token_values(LOSSES, head, target, weight_BL))  # noqa: E731
    gradient = jax.grad(total)(spoilt)
    assert not np.any(np.asarray(gradient.h_BLD)[np.asarray(weight_BL) == 0])
    np.testing.assert_array_equal(gradient.w_VD, jax.grad(total)(head).w_VD)


def test_a_boundary_that_is_all_but_impossible_is_a_finite_number_without_gradient():
    head, target, weight_BL = case()
    far = Head(head.h_BLD, head.w_VD, jnp.where(target.is_boundary_V, -1e4, 0.0), vocab_size=V)
    total = lambda head: token_values(LOSSES, head, target, weight_BL)["boundary"].sum()  # noqa: E731
    value, gradient = jax.value_and_grad(total)(far)
    assert np.isclose(value, np.log(1e-37) * float(weight_BL.sum()))
    assert not np.any(gradient.h_BLD)
