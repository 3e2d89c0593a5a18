"""Losses against a truth that is known: text of a Markov chain, whose entropy rate no model can beat.

What a model can reach. A document of n letters gives n labels: n - 1 letters, each drawn from the row of the letter
before it, and the end. A model that sees the last letter but not the place in the document reaches at best

    (1 - 1/n) rate + h(1/n),    h(q) = -q log q - (1 - q) log(1 - q),

for one label in n is the end: 0.0012 nats above the rate where n = 8192. The window takes nothing away, since its
first input is already the letter that decides the first label. `source_loss_BL` is this for every token by itself; with
it the sampling error of the validation text, by far the larger one, stands on both sides of a comparison.
"""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxdistill import analysis, data
from jaxdistill.data.markov import LETTERS, _chain
from jaxdistill.experiment import Experiment
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.objective import Term
from jaxdistill.models import ladder
from jaxdistill.optim import AdamW
from jaxdistill.run import run
from jaxdistill.scaling import Fit, fit_supervised, table

pytestmark = pytest.mark.xdist_group("markov_law")


def experiment(alphabet: int, width: int, steps: int, seed: int = 0) -> Experiment:
    """A model of a chain of order 1, on a text of 1.3M letters that it sees at most once."""
    source = data.Markov(alphabet, order=1, concentration=0.3, seed=seed, num_documents=160, length=2**13)
    return Experiment(
        model=ladder.laptop(width, 257, vocab_multiple=1, head_size=4),
        data=data.Tokens(source, data.Bytes(), length=32),
        objective={"ce": Term(CrossEntropy())},
        steps=steps,
        batch=8,
        optim=AdamW(peak=0.05, warmup=steps // 10),
        seed=seed,
        log_every=steps,
    )


def validation(tokens: data.Tokens) -> tuple[data.Batch, int]:
    """All validation windows as one batch, and the id that ends a document."""
    dataset = data.prepare(tokens, quiet=True)
    (batch,) = dataset.validation(dataset.num_validation_windows)
    return batch, dataset.tokenizer.eos_id


def source_loss_BL(tokens: data.Tokens) -> np.ndarray:
    """-log p(label | token) in nats by the chain itself, which takes every label to be the end with probability 1/n."""
    source, (batch, eos_id) = tokens.source, validation(tokens)
    rows, _ = _chain(source)
    letter = np.zeros(257, int)
    letter[[ord(character) for character in LETTERS[: source.alphabet]]] = np.arange(source.alphabet)
    going_on = rows[letter[batch.tokens_BL], letter[batch.label_BL]] * (1 - 1 / source.length)
    return -np.log(np.where(batch.label_BL == eos_id, 1 / source.length, going_on))


def model_loss_BL(trained: analysis.Run) -> np.ndarray:
    """-log q(label | window) in nats by a trained model, from its logits whole."""
    batch, _ = validation(trained.experiment.data)
    h_BLD, _ = trained.model.hidden(trained.params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
    log_q_BLV = jax.nn.log_softmax(trained.model.head(trained.params, h_BLD).logits())
    return -np.take_along_axis(np.asarray(log_q_BLV), batch.label_BL[..., None], axis=-1)[..., 0]


def mean_and_error(values_BL: np.ndarray, weight_BL: np.ndarray) -> tuple[float, float]:
    """The mean over tokens and its standard error, from the windows: tokens of one window are not independent."""
    count_B = weight_BL.sum(axis=1)
    mean = (values_BL * weight_BL).sum() / count_B.sum()
    error_B = (values_BL * weight_BL).sum(axis=1) - mean * count_B
    return mean, math.sqrt((error_B**2).sum()) / count_B.sum()


def best_loss(source: data.Markov) -> float:
    """(1 - 1/n) rate + h(1/n)."""
    q = 1 / source.length
    return (1 - q) * source.entropy_rate() - q * math.log(q) - (1 - q) * math.log1p(-q)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A large enough model: its result, and the losses of it and of the source on each token of weight 1."""

    source: data.Markov
    reported: float
    model_BL: np.ndarray
    source_BL: np.ndarray
    weight_BL: np.ndarray


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("markov") / "run"
    chosen = experiment(alphabet=12, width=32, steps=600)
    result = run(chosen, directory, quiet=True)
    weight_BL = validation(chosen.data)[0].weight_BL
    of_model = model_loss_BL(analysis.load_run(directory))
    return Trained(chosen.data.source, result["loss"], of_model, source_loss_BL(chosen.data), weight_BL)


def test_the_reported_loss_is_the_mean_over_tokens(trained):
    mean, _ = mean_and_error(trained.model_BL, trained.weight_BL)
    assert trained.reported == pytest.approx(mean, rel=1e-5)


def test_the_source_itself_has_its_entropy_rate(trained):
    mean, error = mean_and_error(trained.source_BL, trained.weight_BL)
    assert error < 0.005 * trained.source.entropy_rate()
    assert abs(mean - best_loss(trained.source)) < 3 * error


def test_a_large_enough_model_comes_within_one_percent_of_the_entropy_rate_and_never_below_it(trained):
    _, error = mean_and_error(trained.model_BL, trained.weight_BL)
    rate = trained.source.entropy_rate()
    assert -3 * error < trained.reported - best_loss(trained.source) < 0.01 * rate


def test_a_model_never_predicts_the_text_better_than_its_source(trained):
    excess, error = mean_and_error(trained.model_BL - trained.source_BL, trained.weight_BL)
    assert error < 0.001 * trained.source.entropy_rate()  # the sampling error of the text is gone
    assert -3 * error < excess < 0.01 * trained.source.entropy_rate()


def sweep(directory, seed: int) -> tuple[Fit, float, float]:
    """The law of twelve runs of one chain, the loss of the chain itself on their validation text, and its error.

    Twelve is the fewest for which the law with a free gamma is tried. Widths limit the rank of the table of
    transitions a model can hold, so that size and tokens both matter.
    """
    rows = []
    for width, steps in itertools.product((8, 16, 24), (200, 400, 800, 1600)):
        chosen = experiment(alphabet=24, width=width, steps=steps, seed=seed)
        rows.append(
            {name: run(chosen, directory / f"{width}-{steps}", quiet=True)[name] for name in ("N", "D", "loss")}
        )
    source_BL, weight_BL = source_loss_BL(chosen.data), validation(chosen.data)[0].weight_BL
    return fit_supervised(table.table(rows)), *mean_and_error(source_BL, weight_BL)


@pytest.fixture
def kept_compilations(cache):
    """Runs of one size share their compiled programs, as they do on the command line."""
    changed = {"jax_compilation_cache_dir": str(cache / "xla"), "jax_persistent_cache_min_compile_time_secs": 0.2}
    before = {name: getattr(jax.config, name) for name in changed}
    for values in (changed, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is changed:
            yield


def test_a_sweep_finds_the_entropy_of_its_source_as_the_irreducible_loss(kept_compilations, tmp_path):
    """E lies at the loss of the chain itself on the validation text: the entropy rate, the ends, the sampling error."""
    fitted, source_loss, error = sweep(tmp_path, seed=0)
    (E,) = (parameter for parameter in fitted.parameters if parameter.symbol == "E")
    assert E.identified
    assert E.low <= source_loss <= E.high
    assert E.high - E.low < 0.05 * source_loss
    best = best_loss(data.Markov(24, order=1, concentration=0.3, seed=0, num_documents=160, length=2**13))
    assert E.low - 3 * error < best < E.high + 3 * error
