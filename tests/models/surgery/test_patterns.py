"""Which layers are kept: the examples of the papers, and what holds for every size."""

import itertools
import math

import pytest

from jaxdistill.errors import InputError
from jaxdistill.models.surgery import patterns

OF_A_SIZE = (patterns.max_gap, patterns.drop_input, patterns.drop_output, patterns.drop_middle, patterns.drop_both)
CASES = [
    (N, n, first, last)
    for N, n, first, last in itertools.product(range(1, 21), range(1, 6), range(1, 4), range(4))
    if first + last <= N
]


@pytest.mark.parametrize(
    ("num_layers", "ends", "kept"),
    [
        (36, (1, 2), (*range(0, 35, 2), 35)),
        (32, (1, 2), (*range(0, 31, 2), 31)),
        (28, (2, 1), (0, *range(1, 28, 2))),
        (12, (1, 2), (0, 2, 4, 6, 8, 10, 11)),
        (8, (1, 2), (0, 2, 4, 6, 7)),
    ],
    ids=["Qwen3-4B and 8B", "Pythia", "Llama-3.2-3B", "12", "8"],
)
def test_every_second_layer_is_kept_as_in_boomerang_distillation(num_layers, ends, kept):
    assert patterns.every_nth(num_layers, 2, *ends) == kept


def by_hidden_states(N, n, first, last):
    """Boomerang's own account: anchors among the hidden states, of which 0 enters the first layer."""
    anchors = itertools.takewhile(lambda e: e <= N - last, itertools.count(first + n - 1, n))
    deleted = {layer for e in anchors for layer in range(e - n + 1, e)}
    return tuple(sorted(set(range(N)) - deleted))


def test_every_nth_layer_agrees_with_the_account_by_hidden_states():
    assert len(CASES) > 800
    for case in CASES:
        assert patterns.every_nth(*case) == by_hidden_states(*case), case


def test_the_ends_that_are_asked_for_are_kept_and_no_gap_is_wider_than_n():
    for N, n, first, last in CASES:
        keep = patterns.every_nth(N, n, first, last)
        assert set(range(first)) | set(range(N - last, N)) <= set(keep)
        assert {b - a for a, b in itertools.pairwise((*keep, N))} <= {1, n}


def test_every_first_layer_is_the_model_itself():
    assert patterns.every_nth(9, n=1) == tuple(range(9))


@pytest.mark.parametrize("pattern", OF_A_SIZE)
def test_a_pattern_of_a_size_keeps_so_many_layers_and_both_ends(pattern):
    for N in range(2, 30):
        for size in range(2, N + 1):
            keep = pattern(N, size)
            patterns.check(keep, N)
            assert len(keep) == size and keep[0] == 0 and keep[-1] == N - 1
        assert pattern(N, N) == tuple(range(N))


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        (patterns.drop_input, range(1, 13)),
        (patterns.drop_output, range(11, 23)),
        (patterns.drop_middle, range(6, 18)),
        (patterns.drop_both, (*range(1, 7), *range(17, 23))),
    ],
)
def test_half_of_24_layers_goes_where_the_name_says(pattern, gone):
    assert set(range(24)) - set(pattern(24, 12)) == set(gone)


def test_the_gaps_of_max_gap_differ_by_one_at_most_and_are_those_of_exact_fractions():
    for N, size in ((24, 12), (12, 6), (32, 16), (7, 3), (10, 4)):
        keep = patterns.max_gap(N, size)
        assert keep == tuple(math.floor(i * (N - 1) / (size - 1) + 0.5) for i in range(size))
        gaps = {b - a for a, b in itertools.pairwise(keep)}
        assert max(gaps) - min(gaps) <= 1


def test_layers_of_the_highest_scores_stay_and_of_equals_the_earlier():
    assert patterns.highest([0.5, 0.1, 0.3, 0.1, 0.9], 3) == (0, 2, 4)
    assert patterns.highest([0.5, 0.1, 0.3, 0.1, 0.9], 4) == (0, 1, 2, 4)
    assert patterns.highest([1.0, 1.0], 2) == (0, 1)


def test_the_run_that_changes_least_goes():
    assert patterns.drop_run([0.5, 0.2, 0.1, 0.1], 6) == (0, 1, 5)
    assert patterns.drop_run([0.1, 0.2], 4) == (3,)
    assert patterns.drop_run([3.0, 1.0, 2.0], 3) == (0, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patterns.check((), 3), "no layer is kept: name at least one"),
        (lambda: patterns.check((0, 3), 3), "layer 3 is to be kept, of a model whose layers are 0 to 2"),
        (lambda: patterns.check((-1, 0), 3), "layer -1 is to be kept, of a model whose layers are 0 to 2"),
        (
            lambda: patterns.check((1, 0), 3),
            r"the kept layers \(1, 0\) must be in ascending order, each of them once: ",
        ),
        (lambda: patterns.check((1, 1), 3), r"the kept layers \(1, 1\) must be in ascending order"),
        (lambda: patterns.every_nth(8, n=0), "every_nth needs n >= 1, first >= 1, last >= 0 and first \\+ last <= 8"),
        (lambda: patterns.every_nth(8, first=0), r".*it got n=2, first=0, last=2"),
        (lambda: patterns.every_nth(2, first=1), r".*it got n=2, first=1, last=2"),
        (lambda: patterns.max_gap(8, 1), "1 of 8 layers are to be kept: keep the first and the last, and at most all"),
        (lambda: patterns.drop_both(8, 9), "9 of 8 layers are to be kept"),
        (lambda: patterns.highest([1.0, 2.0], 0), "0 of 2 layers are to be kept: keep at least 1 and at most all"),
        (lambda: patterns.highest([1.0, math.nan], 1), "the score of layer 1 is nan: scores must be finite"),
        (lambda: patterns.drop_run([1.0, math.inf], 4), "the score of layer 1 is inf: scores must be finite"),
        (lambda: patterns.drop_run([1.0], 3), "1 scores of runs do not fit a model of 3 layers: give one a start"),
        (lambda: patterns.drop_run([1.0] * 5, 4), "5 scores of runs do not fit a model of 4 layers"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=f"^{message}"):
        call()
