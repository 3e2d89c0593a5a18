"""The detectors of teacher hacking, on curves whose answer is known; the oracle's loss, against its entropy."""

import dataclasses
import pathlib

import numpy as np
import pytest

from jaxdistill.experiment import load_module

hacking = load_module(pathlib.Path(__file__).parents[2] / "experiments" / "teacher_hacking.py")
STEP = np.arange(20, 2001, 20)
FALLING = 3.0 * STEP**-0.7 * np.exp(0.01 * np.random.default_rng(0).standard_normal(len(STEP)))


def test_a_student_hacks_where_the_truth_recedes_while_the_teacher_comes_closer():
    rising = 0.1 + 0.02 * np.log(STEP / 400) ** 2
    assert hacking.hacks(hacking.Curve(STEP, FALLING, rising))
    assert not hacking.hacks(hacking.Curve(STEP, FALLING, FALLING + 0.05))
    assert not hacking.hacks(hacking.Curve(STEP, rising, rising))  # it overfits: further from its teacher too


@pytest.mark.parametrize("floor", [0.01, 0.1, 1.5])
def test_a_power_law_is_left_where_the_distance_rises_again(floor):
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(STEP)))
    falling, rising = 3.0 * STEP**-0.7 + floor, 0.3 * np.maximum(0.0, np.log(STEP / 900))
    faster = falling - floor / 3 * np.maximum(0.0, np.log(STEP / 900))
    assert not hacking.leaves_power_law(STEP, falling * noise)
    assert not hacking.leaves_power_law(STEP, faster * noise)
    assert hacking.leaves_power_law(STEP, falling * (1 + rising) * noise)


def test_the_oracle_has_its_entropy():
    oracle = dataclasses.replace(hacking.ORACLE, num_documents=2000)
    tokens = dataclasses.replace(hacking.teacher().data, source=oracle, validation_windows=99)
    letters = hacking.LENGTH - 2  # that have another before them; the end, which costs nothing, is a label too
    assert hacking.oracle_loss(tokens) == pytest.approx(oracle.entropy_rate() * letters / (letters + 1), rel=0.02)
