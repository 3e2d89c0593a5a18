import itertools
import math

import numpy as np
import pytest
import scipy.linalg

from jaxdistill.data import Markov
from jaxdistill.data.markov import LETTERS, _chain
from jaxdistill.errors import InputError

SMALL = Markov(alphabet=3, order=2, concentration=0.5, seed=1, num_documents=2000, length=100)


def log_probabilities(config):
    """log P(next letter | the last j letters) of every word, by a dense eigenvector and sums over words."""
    rows, _ = _chain(config)
    letters = LETTERS[: config.alphabet]
    contexts = ["".join(word) for word in itertools.product(letters, repeat=config.order)]
    step = np.zeros((len(contexts),) * 2)
    for (i, context), (a, letter) in itertools.product(enumerate(contexts), enumerate(letters)):
        step[i, contexts.index((context + letter)[1:])] += rows[i, a]
    values, vectors = scipy.linalg.eig(step.T)
    stationary = vectors[:, np.argmin(abs(values - 1))].real
    stationary /= stationary.sum()
    words = {c + x: stationary[i] * rows[i, a] for i, c in enumerate(contexts) for a, x in enumerate(letters)}
    marginal = {}
    for word, p in words.items():
        for j in range(len(word) + 1):
            marginal[word[j:]] = marginal.get(word[j:], 0) + p
    # The marginal of a context is that of its last letters anywhere, since the chain is stationary.
    return {word: math.log(p / marginal[word[:-1]]) for word, p in marginal.items() if word}, marginal


def test_entropies_are_those_of_an_enumeration():
    for config in (SMALL, Markov(4, 1, 0.3, 2, 1, 9), Markov(5, 0, 1.0, 3, 1, 9), Markov(2, 5, 0.7, 4, 1, 9)):
        logs, marginal = log_probabilities(config)
        expected = [
            -sum(marginal[word] * log for word, log in logs.items() if len(word) == j + 1)
            for j in range(config.order + 1)
        ]
        np.testing.assert_allclose(config.entropies(), expected, rtol=0, atol=1e-12)
        assert config.entropy_rate() == config.entropies()[-1]


def test_the_next_letter_has_the_probabilities_of_an_enumeration():
    for config in (SMALL, Markov(4, 1, 0.3, 2, 1, 9), Markov(5, 0, 1.0, 3, 1, 9)):
        logs, _ = log_probabilities(config)
        for j, found in enumerate(config.next_letter()):
            words = itertools.product(LETTERS[: config.alphabet], repeat=j + 1)
            expected = np.reshape([math.exp(logs["".join(word)]) for word in words], (-1, config.alphabet))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_two_letters_have_the_closed_form():
    config = Markov(2, 1, 1.0, 5, 1, 9)
    (_, p), (q, _) = _chain(config)[0]
    entropy = lambda x: -x * math.log(x) - (1 - x) * math.log(1 - x)  # noqa: E731
    rate = (q * entropy(p) + p * entropy(q)) / (p + q)
    np.testing.assert_allclose(config.entropies(), [entropy(q / (p + q)), rate], rtol=0, atol=1e-14)


def test_more_context_never_has_more_entropy():
    entropies = Markov(8, 3, 0.1, 6, 1, 9).entropies()
    assert entropies[0] < math.log(8)
    assert (np.diff(entropies) < 0).all()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_text_has_the_stated_entropies_from_its_first_letter(split):
    config = Markov(3, 2, 0.5, 1, 2000 if split == "train" else 40_000, 100)
    logs, _ = log_probabilities(config)
    documents = list(config.documents(split))
    assert len(documents) == 2000
    for j, exact in enumerate(config.entropies()):
        for places in ([j], range(j, 100)):  # right after the start, and all along
            losses = [np.mean([-logs[text[t - j : t + 1]] for t in places]) for text in documents]
            assert abs(np.mean(losses) - exact) < 4 * np.std(losses) / 2000**0.5


def test_every_context_is_followed_by_its_own_distribution():
    rows, _ = _chain(SMALL)
    counts = np.zeros_like(rows)
    for text in SMALL.documents("train"):
        letters = [LETTERS.index(letter) for letter in text]
        for first, second, following in zip(letters, letters[1:], letters[2:], strict=False):
            counts[first * 3 + second, following] += 1
    total = counts.sum(axis=1, keepdims=True)
    spread = np.sqrt(rows * (1 - rows) * total) + 1e-9
    assert (abs(counts - rows * total) < 5 * spread).all()


def test_documents_repeat_exactly_and_the_splits_are_other_streams():
    train, validation = list(SMALL.documents("train")), list(SMALL.documents("validation"))
    assert train == list(SMALL.documents("train"))
    assert (len(train), len(validation)) == (2000, 100)
    assert {len(text) for text in train + validation} == {100}
    assert len(set(train + validation)) == 2100


def test_more_documents_begin_with_the_same_ones():
    longer = Markov(3, 2, 0.5, 1, 3000, 100)
    assert list(itertools.islice(longer.documents("train"), 2000)) == list(SMALL.documents("train"))


def test_fingerprint_tells_settings_apart():
    changed = [Markov(3, 2, 0.5, 2, 2000, 100), Markov(3, 2, 0.5, 1, 2001, 100), Markov(3, 1, 0.5, 1, 2000, 100)]
    assert len({config.fingerprint() for config in (SMALL, *changed)}) == 4
    assert SMALL.fingerprint() == Markov(3, 2, 0.5, 1, 2000, 100).fingerprint()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"alphabet": 1}, "alphabet=1 must be a number of letters from 2 to 62"),
        ({"alphabet": 63}, "alphabet=63 must be"),
        ({"order": -1}, "order=-1 must be at least 0"),
        ({"alphabet": 62, "order": 3}, "order=3 must be at least 0 and give at most 4096 contexts"),
        ({"concentration": 0.0}, "concentration=0.0 must be above 0"),
        ({"concentration": float("nan")}, "concentration=nan must be above 0 and finite"),
        ({"concentration": float("inf")}, "concentration=inf must be above 0 and finite"),
        ({"length": 1}, "length at least order and 1"),
        ({"num_documents": 0}, "num_documents at least 1"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_unusable_settings_are_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        Markov(**{**dict(alphabet=3, order=2, concentration=0.5, seed=1, num_documents=10, length=10), **change})


def test_a_chain_in_separate_parts_is_refused():
    sharp = [Markov(2, 3, 1e-4, seed, 10, 10) for seed in range(20)]
    refused = 0
    for config in sharp:
        try:
            config.entropies()
        except InputError as error:
            assert "falls into separate parts: raise concentration=0.0001" in str(error)
            refused += 1
    assert 0 < refused < 20
