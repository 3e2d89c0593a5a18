"""An ensemble is the mean of its members: of probabilities or logits, over whole texts and token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.ensemble import Ensemble
from jaxdistill.errors import InputError
from jaxdistill.evals.per_token import per_token
from jaxdistill.generate import generate, make_generate
from jaxdistill.models.transformer import Config, Transformer

SIZES = {"num_layers": 1, "num_heads": 2, "head_size": 8, "mlp_width": 16}
MODELS = [
    Transformer(Config(vocab_size=50, width=16, vocab_multiple=8, **SIZES)),
    Transformer(Config(vocab_size=50, width=12, vocab_multiple=16, tied=False, softcap=3.0, **SIZES)),
]
PARAMS = [model.init(jax.random.key(n, impl="rbg")) for n, model in enumerate(MODELS)]
TOKENS = np.random.default_rng(0).integers(0, 50, (2, 11)).astype(np.int32)
U = 2.0**-24


def head_of(model, params):
    return model.head(params, model.hidden(params, TOKENS)[0])


def mean(of):
    """log-probabilities of the mean in float64."""
    z = [np.float64(head_of(model, own).logits())[..., :50] for model, own in zip(MODELS, PARAMS, strict=True)]
    if of == "logit":
        return special.log_softmax(np.mean(z, 0), axis=-1)
    return special.logsumexp([special.log_softmax(each, axis=-1) for each in z], axis=0) - np.log(2)


@pytest.mark.parametrize("of", ["probability", "logit"])
def test_what_is_told_of_a_token_is_told_of_the_mean(of):
    ensemble, label_BL = Ensemble(tuple(MODELS), of), np.roll(TOKENS, 1, 1)
    head = head_of(ensemble, tuple(PARAMS))
    log_q = mean(of)
    whole = jax.nn.log_softmax(head.logits())[..., :50]
    np.testing.assert_allclose(whole, log_q, atol=200 * U)
    teacher = head_of(MODELS[1], PARAMS[1])
    found = per_token(head, label_BL, teacher, positions=4)
    np.testing.assert_allclose(found["loss"], -np.take_along_axis(log_q, label_BL[..., None], -1)[..., 0], rtol=200 * U)
    np.testing.assert_allclose(found["confidence"], np.exp(log_q.max(-1)), rtol=200 * U)
    log_p = special.log_softmax(np.float64(teacher.logits())[..., :50], axis=-1)
    np.testing.assert_allclose(
        found["forward_kl"], special.rel_entr(np.exp(log_p), np.exp(log_q)).sum(-1), atol=200 * U
    )


@pytest.mark.parametrize("of", ["probability", "logit"])
def test_an_ensemble_of_one_model_many_times_is_the_model(of):
    many = Ensemble((MODELS[1],) * 3, of), (PARAMS[1],) * 3
    own, label_BL = head_of(MODELS[1], PARAMS[1]), np.roll(TOKENS, 1, 1)
    one, three = per_token(own, label_BL), per_token(head_of(*many), label_BL)
    for name, expected in one.items():
        np.testing.assert_allclose(three[name], expected, rtol=100 * U)


@pytest.mark.parametrize("of", ["probability", "logit"])
def test_it_goes_on_with_the_most_probable_token_of_the_mean(of):
    ensemble, params = Ensemble(tuple(MODELS), of), tuple(PARAMS)
    step = jax.jit(make_generate(ensemble, None, (), 5))
    (text,) = generate(lambda *inputs: step(params, *inputs), [TOKENS[0]], max_tokens=5, size=1)
    ids = TOKENS[0].tolist()
    for token, logp in zip(text.ids, text.logp, strict=True):
        head = ensemble.head(params, ensemble.hidden(params, np.array([ids], np.int32))[0])
        log_q_V = jax.nn.log_softmax(head.logits()[0, -1])
        assert token == jnp.argmax(log_q_V)
        assert logp == pytest.approx(float(log_q_V[token]), abs=1e-4)
        ids.append(token)


def test_members_of_two_vocabularies_are_refused():
    other = Transformer(Config(vocab_size=40, width=12, **SIZES))
    params = other.init(jax.random.key(0, impl="rbg"))
    ensemble = Ensemble((MODELS[0], other))
    with pytest.raises(InputError, match="can only be compared under one tokenizer"):
        per_token(head_of(ensemble, (PARAMS[0], params)), TOKENS)
    with pytest.raises(InputError, match=r"Average\.of is 'median'"):
        head_of(Ensemble((MODELS[0],), "median"), (PARAMS[0],))
