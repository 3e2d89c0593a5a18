"""What a token tells, against float64 over whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxdistill.errors import InputError
from jaxdistill.evals.per_token import most_probable, per_token
from jaxdistill.head import Head
from jaxdistill.losses.vocabulary import Vocabulary

U = 2.0**-24
B, L = 2, 7


def head_of(z_BLV, padding=0) -> Head:
    """The head whose logits are these; its padded columns would be 1000 if they counted."""
    V = z_BLV.shape[-1]
    h_BLD = np.concatenate([z_BLV, np.ones((*z_BLV.shape[:2], 1))], axis=-1)
    w_VD = np.concatenate([np.eye(V, V + 1), 1000 * np.ones((padding, V + 1))])
    return Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), vocab_size=V)


def draw(seed, spread, V):
    return (spread * np.random.default_rng(seed).normal(size=(B, L, V))).astype(np.float32)


def labels(V):
    return np.random.default_rng(9).integers(V, size=(B, L)).astype(np.int32)


def log_error(z_BLV):
    """How far an fp32 log-probability is off: the sum of V exponentials, the shift, and a few functions."""
    return (z_BLV.shape[-1] + 2 * np.ptp(z_BLV) + 8) * U


def logs(*z):
    return [special.log_softmax(np.float64(x), axis=-1) for x in z]


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("V", [33, 2049])
def test_every_number_is_that_of_whole_logits_in_float64(spread, V):
    z, z_teacher, label_BL = draw(0, spread, V), draw(1, spread, V), labels(V)
    found = per_token(head_of(z), label_BL, head_of(z_teacher, padding=5), positions=3)
    log_p, log_q = logs(z_teacher, z)
    p, q = np.exp(log_p), np.exp(log_q)
    error = log_error(np.stack([z, z_teacher]))
    expected = {
        "loss": -np.take_along_axis(log_q, label_BL[..., None], -1)[..., 0],
        "entropy": stats.entropy(q, axis=-1),
        "confidence": q.max(-1),
        "correct": z.argmax(-1) == label_BL,
        "forward_kl": special.rel_entr(p, q).sum(-1),
        "reverse_kl": special.rel_entr(q, p).sum(-1),
        "agreement": z.argmax(-1) == z_teacher.argmax(-1),
        "acceptance": 1 - 0.5 * np.abs(p - q).sum(-1),
        "teacher_loss": -np.take_along_axis(log_p, label_BL[..., None], -1)[..., 0],
        "teacher_entropy": stats.entropy(p, axis=-1),
        "teacher_confidence": p.max(-1),
        "teacher_correct": z_teacher.argmax(-1) == label_BL,
    }
    assert found.keys() == expected.keys()
    for name, value_BL in expected.items():
        # a mean of numbers below A, each with the relative error of its probability and the absolute one of its logs
        A = 1 + np.abs(value_BL).max()
        np.testing.assert_allclose(found[name], value_BL, rtol=0, atol=3 * error * A, err_msg=name)


def test_a_model_without_a_teacher_has_no_numbers_of_one():
    z = draw(0, 1.0, 33)
    assert per_token(head_of(z), labels(33)).keys() == {"loss", "entropy", "confidence", "correct"}


@pytest.mark.parametrize("positions", [1, 2, 7, 100])
def test_chunks_do_not_matter(positions):
    z, z_teacher, label_BL = draw(0, 3.0, 65), draw(1, 3.0, 65), labels(65)
    whole = per_token(head_of(z), label_BL, head_of(z_teacher), positions=L)
    found = per_token(head_of(z), label_BL, head_of(z_teacher), positions=positions)
    for name, value_BL in whole.items():
        # the same sums over the vocabulary; the compiler may take them in another order for another shape
        np.testing.assert_allclose(found[name], value_BL, rtol=0, atol=8 * log_error(z), err_msg=name)


def test_a_uniform_distribution_has_the_entropy_of_its_vocabulary():
    found = per_token(head_of(np.zeros((B, L, 48), np.float32), padding=16), labels(48))
    for name in ("loss", "entropy"):
        np.testing.assert_allclose(found[name], np.log(48), rtol=48 * U)
    np.testing.assert_allclose(found["confidence"], 1 / 48, rtol=48 * U)
    np.testing.assert_array_equal(found["correct"], labels(48) == 0)


def test_a_student_equal_to_its_teacher_is_always_accepted():
    z = draw(0, 10.0, 101)
    found = per_token(head_of(z), labels(101), head_of(z, padding=27))
    np.testing.assert_array_equal(found["agreement"], 1)
    np.testing.assert_allclose(found["acceptance"], 1, rtol=101 * U)
    for name in ("forward_kl", "reverse_kl"):
        np.testing.assert_allclose(found[name], 0, atol=2 * log_error(z))


def test_what_two_disjoint_distributions_share_is_nothing():
    z = np.zeros((1, 1, 4), np.float32)
    z[..., :2], z[..., 2:] = 0, -200
    found = per_token(head_of(z), np.zeros((1, 1), np.int32), head_of(z[..., ::-1].copy()))
    np.testing.assert_array_equal(found["acceptance"], 0)
    np.testing.assert_array_equal(found["agreement"], 0)
    np.testing.assert_allclose(found["forward_kl"], 200, rtol=4 * U)


def test_of_equal_entries_the_lowest_id_is_the_most_probable():
    z = jnp.array([[[1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0]]])
    np.testing.assert_array_equal(most_probable(z, Vocabulary()), [[1, 0]])
    np.testing.assert_array_equal(most_probable(z, Vocabulary(first=1000)), [[1001, 1000]])


def test_two_vocabularies_cannot_be_compared():
    with pytest.raises(InputError, match="vocabulary of 34 and the student of 33"):
        per_token(head_of(draw(0, 1.0, 33)), labels(33), head_of(draw(1, 1.0, 34)))


def test_no_array_holds_the_logits_of_all_positions():
    V = 300
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 64, 8), (V, 8))]

    def statistics(h_BLD, w_VD):
        head = Head(h_BLD, w_VD, vocab_size=V)
        return per_token(head, jnp.zeros((1, 64), jnp.int32), head, positions=4)

    biggest = max(int(np.prod(shape)) for shape in _shapes(jax.make_jaxpr(statistics)(*shapes).jaxpr))
    assert biggest == V * 4  # the logits of one chunk; all of them would be V * 64


def _shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape"))
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _shapes(inner)
