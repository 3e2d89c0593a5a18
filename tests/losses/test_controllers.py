"""Controllers: pure, traceable, and monotone where they must be."""

import jax
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.losses.controllers import DistillmPhi, Staged, TaidTime

U = 2.0**-24


def run(controller, losses, steps=None):
    """The knob after each step."""
    update, state, knobs = jax.jit(controller.update), controller.init(), []
    for step, loss in enumerate(losses):
        state = update(state, {"taid": np.float32(loss)}, step, steps or len(losses))
        knobs.append(float(controller.value(state)))
    return np.array(knobs)


def test_the_time_of_taid_follows_the_published_rule():
    losses = np.random.default_rng(0).uniform(1, 3, size=50)
    t, momentum, expected = 0.3, 0.0, [0.3]
    for step in range(1, 50):
        momentum = 0.9 * momentum + 0.1 * (losses[step - 1] - losses[step]) / losses[step - 1]
        linear = 0.3 + 0.6 * step / 50
        t = min(0.9, max(linear, t + 0.05 / (1 + np.exp(-momentum)) * (1 - t)))
        expected.append(t)
    got = run(TaidTime(start=0.3, end=0.9, alpha=0.05, beta=0.9), losses)
    np.testing.assert_allclose(got, expected, rtol=64 * U)
    assert expected[20] > 0.3 + 0.6 * 20 / 50  # the adaptive part is ahead of the line


def test_the_time_of_taid_never_falls_and_stays_within_its_bounds():
    losses = np.concatenate([np.random.default_rng(1).uniform(0, 10, size=60), [0.0, 0.0, 5.0]])
    t = run(TaidTime(alpha=0.1), losses)
    assert np.all(np.diff(t) >= 0) and t[0] == np.float32(0.4) and t[-1] <= 1 and np.all(np.isfinite(t))


def test_without_adaptation_the_time_of_taid_is_a_line():
    np.testing.assert_allclose(run(TaidTime(alpha=0.0), np.ones(10)), 0.4 + 0.6 * np.arange(10) / 10, rtol=4 * U)
    assert run(TaidTime(alpha=0.0), np.ones(11), steps=10)[-1] == 1


def test_phi_rises_when_the_loss_does_and_its_reference_moves_only_then():
    controller, state = DistillmPhi(), DistillmPhi().init()
    seen = []
    for loss in (2.0, 1.0, 2.05, 2.11, 2.15, 2.3, 2.25):
        state = jax.jit(controller.on_evaluation)(state, loss)
        seen.append((float(controller.value(state)), float(state["reference"])))
    # the first evaluation sets the reference; 1.0 does not move it, so 2.11 is the first above it by 0.1
    np.testing.assert_allclose(
        seen, [(0, 2), (0, 2), (0, 2), (0.1, 2.11), (0.1, 2.11), (0.2, 2.3), (0.2, 2.3)], rtol=4 * U
    )


def test_phi_ends_at_one_and_steps_do_not_move_it():
    controller, state = DistillmPhi(rise=0.4), DistillmPhi().init()
    for loss in range(10):
        state = controller.on_evaluation(controller.update(state, {}, 0, 1), float(loss))
    assert controller.value(state) == 1


def test_a_stage_is_on_from_its_start_to_its_stop():
    stage = Staged(0.2, 0.5, value=3.0)
    assert [stage(step, 10) for step in range(10)] == [0, 0, 3, 3, 3, 0, 0, 0, 0, 0]
    assert all(Staged()(step, 7) == 1 for step in range(7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaidTime(start=0.9, end=0.5), "both must rise within 0 and 1"),
        (lambda: TaidTime(alpha=-1), "they must not be negative"),
        (lambda: DistillmPhi(rise=0), "they must be above 0"),
        (lambda: Staged(0.5, 0.5), "both are fractions of the run"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
