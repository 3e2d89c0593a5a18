"""Adaptive KL: which tokens are the head, and how the two divergences are weighed."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.losses.adaptive_kl import AdaptiveKL
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.targets import Labels
from jaxdistill.losses.vocabulary import Vocabulary

U = 2.0**-24


def head_share(p, q, mu):
    """g_head / (g_head + g_tail) of one token, by walking down the ranks."""
    mass, gap = 0.0, {True: 0.0, False: 0.0}
    for rank, v in enumerate(np.argsort(-p)):
        mass += p[v]
        gap[rank == 0 or mass <= mu] += abs(p[v] - q[v])
    return gap[True] / (gap[True] + gap[False])


@pytest.mark.parametrize("mu", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_forward_and_reverse_kl_are_weighed_by_the_gap_on_head_and_tail(draw, teach, logs, gradient, bound, spread, mu):
    z_BLV, z_teacher_BLV = draw(0, spread), draw(1, spread)
    log_p, log_q = logs(z_teacher_BLV, z_BLV)
    share_BL = np.array(
        [[head_share(np.exp(log_p[b, t]), np.exp(log_q[b, t]), mu) for t in range(3)] for b in range(2)]
    )
    target, slack = teach(z_teacher_BLV), 2 * bound(log_p, log_q)
    assert share_BL.min() < share_BL.max()
    forward, reverse = ForwardKL()(z_BLV, target), ReverseKL()(z_BLV, target)
    expected_BL = share_BL * forward + (1 - share_BL) * reverse
    np.testing.assert_allclose(AdaptiveKL(mu)(z_BLV, target), expected_BL, rtol=0, atol=slack)
    forward, reverse = gradient(ForwardKL(), z_BLV, target), gradient(ReverseKL(), z_BLV, target)
    expected_BLV = share_BL[..., None] * forward + (1 - share_BL[..., None]) * reverse  # the shares have no gradient
    np.testing.assert_allclose(gradient(AdaptiveKL(mu), z_BLV, target), expected_BLV, rtol=0, atol=slack)


def test_where_both_agree_nothing_is_divided_by_zero(draw, teach, gradient):
    z_BLV = draw(0)
    assert np.array_equal(AdaptiveKL()(z_BLV, teach(z_BLV)), np.zeros((2, 3)))
    assert np.all(np.abs(gradient(AdaptiveKL(), z_BLV, teach(z_BLV))) < 8 * U)


def test_a_sharded_vocabulary_is_refused_in_one_sentence():
    shard = dataclasses.replace(Vocabulary(), axis=("tensor",))
    with pytest.raises(
        InputError, match=r"^AdaptiveKL needs all logits .*: set mesh.tensor to 1, or choose another table$"
    ):
        AdaptiveKL().per_token(jnp.zeros((1, 1, 4)), jnp.zeros((1, 1, 4)), Labels(jnp.zeros((1, 1))), shard)


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_a_head_of_nothing_or_of_everything_is_refused(mu):
    with pytest.raises(InputError, match="the head's mass must be above 0 and below 1"):
        AdaptiveKL(mu)
