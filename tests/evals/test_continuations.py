"""Continuations: which ids are scored, and that their score is the sum of log-probabilities of the text alone."""

import jax
import numpy as np
import pytest
from scipy import special

from jaxdistill.data.tokenizers import ByteTokenizer
from jaxdistill.errors import InputError
from jaxdistill.evals.continuations import Continuation, batches, encode, likelihoods, make_likelihoods
from jaxdistill.models.transformer import Config, Transformer

BYTES = ByteTokenizer()
MODEL = Transformer(Config(257, 2, 16, 2, 8, 24))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def on_batch(params):
    scores = jax.jit(make_likelihoods(MODEL))
    return lambda batch: scores(params, batch)


class Merging:
    """Bytes, but "th" is one token: id 256."""

    def encode(self, text):
        return np.frombuffer(text.encode().replace(b"th", b"\xff"), np.uint8).astype(np.int32)


def test_the_continuation_is_what_follows_the_context():
    found = encode(BYTES, "ab", " cd")
    np.testing.assert_array_equal(found.ids, list(b"ab cd"))
    assert found.first == 2


def test_a_token_in_which_both_meet_is_scored():
    found = encode(Merging(), "at", "hens")
    np.testing.assert_array_equal(found.ids, [ord("a"), 0xFF, *b"ens"])
    assert found.first == 1


@pytest.mark.parametrize(("context", "text"), [("", "a"), ("a", ""), ("t", "h")])
def test_what_leaves_nothing_to_score_or_to_condition_on_is_refused(context, text):
    with pytest.raises(InputError, match="both need a token of their own"):
        encode(Merging(), context, text)


def test_a_long_context_is_cut_from_the_left():
    ids = np.arange(10, dtype=np.int32)
    found = Continuation(ids, first=8).within(4)
    np.testing.assert_array_equal(found.ids, ids[5:])  # four inputs and the label after the last of them
    assert found.first == 3
    assert Continuation(ids, first=8).within(9).first == 8
    with pytest.raises(InputError, match="8 tokens cannot be scored in a window of 7"):
        Continuation(ids, first=2).within(7)


def alone(params, item):
    """(log-probability, greedy) of one continuation from whole logits, float64."""
    h_BLD, _ = MODEL.hidden(params, item.ids[None, :-1])
    z_LV = np.float64(MODEL.head(params, h_BLD).logits())[0, :, :257]
    logq_LV = special.log_softmax(z_LV, axis=-1)[item.first - 1 :]
    label_L = item.ids[item.first :]
    return logq_LV[np.arange(len(label_L)), label_L].sum(), (logq_LV.argmax(-1) == label_L).all()


def test_a_score_is_that_of_the_text_alone(params, on_batch):
    items = [encode(BYTES, "To be, or not", text) for text in (" to be", ".", " " + 30 * "x", "!?", " a", "b", "c")]
    found = likelihoods(on_batch, items, size=3, limit=64)
    assert len(found) == len(items)
    for item, (logp, greedy) in zip(items, found, strict=True):
        expected, same = alone(params, item)
        # a sum of up to 31 log-probabilities of about 6 nats, each from matmuls over at most 24 columns
        assert logp == pytest.approx(expected, rel=1e-5)
        assert greedy == same


def test_what_the_model_would_say_itself_is_greedy(params, on_batch):
    ids = list(b"ab")
    for _ in range(4):
        h_BLD, _ = MODEL.hidden(params, np.array([ids], np.int32))
        ids.append(int(np.asarray(MODEL.head(params, h_BLD).logits())[0, -1].argmax()))
    other = np.array([*ids[:-1], (ids[-1] + 1) % 257], np.int32)
    found = likelihoods(on_batch, [Continuation(np.array(ids, np.int32), 2), Continuation(other, 2)], size=2, limit=64)
    assert [one.greedy for one in found] == [True, False]


def test_all_batches_have_one_shape_and_only_what_is_scored_has_weight():
    items = [Continuation(np.arange(n, dtype=np.int32), first=n - 2) for n in (4, 30, 40, 7, 9)]
    made = batches(items, size=2, limit=100)
    assert {batch.tokens_BL.shape for batch in made} == {(2, 64)}
    assert [batch.weight_BL.sum() for batch in made] == [4, 4, 2]
    np.testing.assert_array_equal(made[0].label_BL[0][made[0].weight_BL[0] == 1], [2, 3])
    assert batches(items, size=2, limit=35)[0].tokens_BL.shape == (2, 35)
