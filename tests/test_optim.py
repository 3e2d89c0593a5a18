"""Schedules in closed form, Adam against float64 NumPy, and learning rates that carry over from width to width."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdistill.data import Markov
from jaxdistill.data.windows import Batch
from jaxdistill.errors import InputError
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.optim import AdamW, Linear
from jaxdistill.step import init_state, make_step


def test_the_defaults_are_those_of_the_paper():
    optim = AdamW()
    assert (optim.peak, optim.warmup, optim.final, optim.weight_decay, optim.clip) == (1e-2, 2000, 1e-3, 1e-4, 1.0)


def test_the_rate_rises_linearly_falls_as_a_cosine_and_ends_at_its_fraction():
    optim, steps = AdamW(warmup=10, final=0.01), 111  # 101 steps from the top to the last, so that one is in the middle
    fraction = [optim.fraction(step, steps) for step in range(steps)]
    np.testing.assert_allclose(fraction[:10], np.arange(1, 11) / 10)
    assert fraction[9] == fraction[10] == max(fraction) == 1
    np.testing.assert_allclose(fraction[60], (1 + 0.01) / 2)
    np.testing.assert_allclose(fraction[35], 0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2)
    np.testing.assert_allclose(fraction[-1], 0.01)
    assert all(np.diff(fraction[10:]) < 0)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 50), (1, 2), (5, 5), (5, 6), (100, 20)])
def test_a_schedule_of_any_length_stays_above_zero_and_at_most_one(warmup, steps):
    fraction = [AdamW(warmup=warmup).fraction(step, steps) for step in range(steps)]
    assert all(0 < f <= 1 for f in fraction)
    assert steps <= warmup or max(fraction) == 1


def test_the_schedule_is_that_of_optax():
    optim, steps = AdamW(peak=0.3, warmup=7, final=0.05), 40
    # optax counts from a rate of zero, which trains nothing: its step n + 1 is our n in the warm-up
    cosine = optax.schedules.cosine_decay_schedule(0.3, steps - 1 - 7, alpha=0.05)
    warmup = optax.schedules.linear_schedule(0.0, 0.3, 7)
    expected = [warmup(step + 1) if step < 7 else cosine(step - 7) for step in range(steps)]
    np.testing.assert_allclose(
        [optim.rates(step, steps)["learning_rate"] for step in range(steps)], expected, rtol=1e-5
    )


def test_weight_decay_follows_the_schedule_and_not_the_learning_rate():
    for step in (0, 50, 99):
        low, high = (AdamW(peak=peak, warmup=10, weight_decay=0.1).rates(step, 100) for peak in (1e-3, 1e-1))
        assert low["decay"] == high["decay"] == np.float32(0.1 * AdamW(warmup=10).fraction(step, 100))
        np.testing.assert_allclose(high["learning_rate"], 100 * low["learning_rate"], rtol=1e-6)


def test_rates_are_fp32_scalars_so_that_steps_share_one_program():
    assert all(isinstance(rate, np.float32) for rate in AdamW().rates(3, 10).values())


def test_directions_are_those_of_adam_on_clipped_gradients():
    # Kingma & Ba 2015, algorithm 1, in float64; gradients of a norm above 1 are scaled to it (Pascanu et al. 2013)
    optim, rng = AdamW(b1=0.8, b2=0.9, eps=1e-3), np.random.default_rng(0)
    params = {"w_DF": jnp.zeros((4, 5)), "norm_D": jnp.zeros(4)}
    transform = optim.transform()
    state, m, v = transform.init(params), dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
    for t, size in enumerate((0.01, 3.0, 0.1, 100.0, 0.3), start=1):
        gradient = {name: (size * rng.normal(size=x.shape)).astype(np.float32) for name, x in params.items()}
        direction, state = transform.update(gradient, state)
        norm = math.sqrt(sum((np.float64(g) ** 2).sum() for g in gradient.values()))
        for name in params:
            g = np.float64(gradient[name]) / max(1.0, norm)
            m[name], v[name] = 0.8 * m[name] + 0.2 * g, 0.9 * v[name] + 0.1 * g**2
            expected = m[name] / (1 - 0.8**t) / (np.sqrt(v[name] / (1 - 0.9**t)) + 1e-3)
            np.testing.assert_allclose(direction[name], expected, rtol=1e-5, atol=1e-6)


PARAMS = {
    "embed_VD": jnp.full((5, 4), 2.0),
    "bias_V": jnp.full(5, 2.0),
    "layers": {"q_DHK": jnp.full((3, 4, 2, 2), 2.0), "norm_D": jnp.full((3, 4), 2.0)},
}


def moved(decay, learning_rate, multiplier=lambda own: 1.0):
    """What is left of PARAMS after one update along the direction 1."""
    rates = {"learning_rate": np.float32(learning_rate), "decay": np.float32(decay)}
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    letters = {"embed_VD": "VD", "bias_V": "V", "layers": {"q_DHK": "NDHK", "norm_D": "ND"}}
    after = AdamW().apply(PARAMS, ones, rates, jax.tree.map(multiplier, letters))
    return {name: float(x.min()) for name, x in {**after, **after["layers"]}.items() if name != "layers"}


def test_weight_decay_shrinks_matrices_by_itself_and_never_gains_or_biases():
    assert moved(0.25, 0.0) == {"embed_VD": 1.5, "q_DHK": 1.5, "bias_V": 2.0, "norm_D": 2.0}
    assert moved(0.25, 0.5) == {"embed_VD": 1.0, "q_DHK": 1.0, "bias_V": 1.5, "norm_D": 1.5}


def test_the_learning_rate_of_each_array_has_the_multiplier_of_its_letters_and_decay_has_none():
    config = Config(5, 3, 4, 2, 2, 8, base_width=1)
    got = moved(0.25, 1.0, config.lr_multiplier)
    assert got == {"embed_VD": 0.5, "bias_V": 1.0, "q_DHK": 1.25, "norm_D": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak": 0.0}, "optim.peak is 0.0; it must be above 0"),
        ({"peak": float("nan")}, "optim.peak is nan; it must be above 0"),
        ({"clip": -1.0}, "optim.clip is -1.0; it must be above 0"),
        ({"eps": 0.0}, "optim.eps is 0.0; it must be above 0"),
        ({"warmup": -1}, "optim.warmup is -1; it must not be negative"),
        ({"weight_decay": -1e-4}, "optim.weight_decay is -0.0001; it must not be negative"),
        ({"b2": 1.0}, "optim.b2 is 1.0; it must be at least 0 and below 1"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused_in_one_sentence(changes, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        AdamW(**changes)


def test_a_linear_coefficient_goes_from_start_to_end_and_stays():
    linear = Linear(1.0, 0.2, fraction=0.5)
    np.testing.assert_allclose([linear(step, 20) for step in (0, 5, 10, 15, 19)], [1.0, 0.6, 0.2, 0.2, 0.2])
    assert Linear(3.0, 3.0)(7, 10) == 3.0


# Width transfer. Rates are a factor 3 apart and the widths span a factor 4. In the plain parametrisation the best rate
# of Adam falls with the width (Yang et al. 2022, arXiv 2203.03466, fig. 1): hidden matrices want 1 / width, the output
# 1 / sqrt(width). Near its minimum the loss is flat beside its noise of 0.01 nats, so the place of the best rate on the
# grid is read off the parabola through the three lowest points. One layer of fixed head size: only the width differs.

PEAKS = np.float32([3.0**-power / 4 for power in range(5)])
STEPS, BATCH, LENGTH, ALPHABET = 100, 8, 16, 16


@pytest.fixture(scope="module")
def markov_batches() -> Batch:
    """STEPS batches of fresh text, [STEPS, B, L]; entropies are 2.49 nats of a letter alone and 1.08 after another."""
    source = Markov(ALPHABET, 1, concentration=0.1, seed=0, num_documents=STEPS * BATCH, length=LENGTH + 1)
    text = "".join(source.documents("train")).encode()
    letters = np.frombuffer(text, np.uint8).reshape(STEPS, BATCH, LENGTH + 1).astype(np.int32) - ord("a")
    ones = np.ones((STEPS, BATCH, LENGTH), np.float32)
    place = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ones.shape)
    return Batch(letters[..., :-1], letters[..., 1:], ones, ones.astype(np.int32), place)


def final_losses(width: int, base_width: int, batches: Batch) -> np.ndarray:
    """The mean training loss, in nats, over the last fifth of the run, for every rate of PEAKS; no text repeats."""
    config = Config(ALPHABET, 1, width, width // 16, 16, 2 * width, base_width=base_width, vocab_multiple=1)
    model, optim = Transformer(config), AdamW(peak=1.0, warmup=STEPS // 5)
    step = make_step(model, optim, Objective.of({"ce": Term(CrossEntropy())}))
    rates = [optim.rates(number, STEPS) for number in range(STEPS)]
    rates = {name: np.stack([rate[name] for rate in rates]) for name in rates[0]}

    @jax.jit
    @jax.vmap
    def train(peak):
        def body(state, now):
            batch, rates = now
            return step(state, {}, batch, rates | {"learning_rate": peak * rates["learning_rate"]}, {"ce": 1.0})

        state = init_state(model, optim, jax.random.key(1, impl="rbg"))  # whose draws compile in a third of the time
        return jax.lax.scan(body, state, (batches, rates))[1]["loss"]

    return np.asarray(train(PEAKS))[:, -STEPS // 5 :].mean(-1)


def best_place(losses: np.ndarray) -> float:
    """Where on the grid the loss is least: 0 is the first rate, 1.5 half-way from the second to the third."""
    lowest = int(losses.argmin())
    assert 0 < lowest < len(losses) - 1, f"the best rate is at the edge of the grid: {losses}"
    before, here, after = losses[lowest - 1 : lowest + 2]
    return lowest + 0.5 * (before - after) / (before - 2 * here + after)


@pytest.fixture(scope="module")
def place(markov_batches) -> dict[int, float]:
    return {width: best_place(final_losses(width, 32, markov_batches)) for width in (32, 64, 128)}


def test_the_best_learning_rate_is_the_same_for_every_width(place):
    assert max(place.values()) - min(place.values()) < 0.5, place  # less than a factor sqrt(3)


@pytest.mark.slow
def test_without_the_multipliers_the_best_learning_rate_falls_with_the_width(place, markov_batches):
    # At width 32 the two parametrisations are one. Four times as wide, the rate falls by sqrt(4) at least.
    plain = best_place(final_losses(128, 128, markov_batches))
    assert plain - place[32] > math.log(2, 3) and plain - place[128] > math.log(2, 3), (plain, place)
