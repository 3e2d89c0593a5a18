"""Blocks, pairs, and the plans of models between student and teacher, in pure Python."""

import itertools
import random

import pytest

from jaxdistill.errors import InputError
from jaxdistill.models.surgery import layers, patterns

CASES = [
    (N, n, first, last)
    for N, n, first, last in itertools.product(range(2, 21), range(1, 6), range(1, 4), range(4))
    if first + last <= N
]


def any_keeps(seed=0):
    """Kept layers of all sorts, unequal blocks among them, with layer 0: (keep, number of layers)."""
    draw = random.Random(seed)
    for N in range(1, 20):
        for _ in range(10):
            yield (0, *sorted(draw.sample(range(1, N), draw.randrange(N)))), N
    for case in CASES:
        yield patterns.every_nth(*case), case[0]


def test_blocks_follow_one_another_through_all_layers_and_begin_with_the_kept_ones():
    for keep, N in any_keeps():
        cut = layers.blocks(keep, N)
        assert [block.start for block in cut] == list(keep)
        assert list(itertools.chain(*cut)) == list(range(N))
        assert len(keep) + sum(len(block) - 1 for block in cut) == N


def test_unequal_blocks_are_cut_where_the_kept_layers_are():
    assert layers.blocks((0, 1, 4), 6) == (range(0, 1), range(1, 4), range(4, 6))
    assert layers.replaceable((0, 1, 4), 6) == (1, 2)


def test_a_layer_is_paired_with_the_last_of_its_block():
    for keep, N in any_keeps():
        states = (*keep, N)  # the state before layer l of the teacher is the one after l layers
        expected = [(i + 1, states[i + 1]) for i in range(len(keep))]
        assert [(i + 1, n + 1) for i, n in layers.pairs(keep, N)] == expected


def test_the_pairs_of_boomerang_distillation_are_those_of_its_code_where_that_is_right():
    """Among hidden states: i to i before the blocks, then anchors, then the states at the end one to one."""
    N, n, first, last = 36, 2, 1, 2
    anchors = range(first + n - 1, N - last + 1, n)
    states = [*range(first), *anchors, *range(N - last + 1, N + 1)]
    assert [(i - 1, state - 1) for i, state in enumerate(states) if i] == list(
        layers.pairs(patterns.every_nth(N, n, first, last), N)
    )


def test_the_pairs_stay_in_step_where_blocks_do_not_fill_the_layers():
    pairs = layers.pairs(patterns.every_nth(36, n=3), 36)
    assert pairs[-4:] == ((10, 32), (11, 33), (12, 34), (13, 35))


def test_a_model_that_keeps_all_is_paired_with_itself():
    assert layers.pairs(tuple(range(5)), 5) == tuple((i, i) for i in range(5))


@pytest.mark.parametrize("k", range(18))
def test_the_last_k_blocks_of_a_qwen_come_after_the_students_first_layers(k):
    keep = patterns.every_nth(36)
    student, teacher = range(0, 17 - k), range(34 - 2 * k, 36)
    plan = layers.pieces(keep, 36, layers.last_blocks(keep, 36, k))
    whole = ((False, student), (True, teacher)) if k < 17 else ((True, range(36)),)
    assert plan == whole


@pytest.mark.parametrize("k", range(18))
def test_the_first_k_blocks_of_a_qwen_come_before_the_students_last_layers(k):
    keep = patterns.every_nth(36)
    plan = layers.pieces(keep, 36, layers.first_blocks(keep, 36, k))
    whole = {0: ((False, range(19)),), 17: ((True, range(36)),)}
    assert plan == whole.get(k, ((True, range(2 * k)), (False, range(k, 19))))


def test_the_first_blocks_of_a_llama_come_after_its_single_first_layer():
    keep = patterns.every_nth(28, first=2, last=1)
    plans = [layers.pieces(keep, 28, layers.first_blocks(keep, 28, k)) for k in (0, 1)]
    assert plans == [
        ((True, range(1)), (False, range(1, 15))),
        ((True, range(3)), (False, range(2, 15))),
    ]


@pytest.mark.parametrize("order", [layers.last_blocks, layers.first_blocks])
def test_orders_take_k_blocks_more_and_more_until_the_teacher_is_whole(order):
    for keep, N in any_keeps():
        gaps = set(layers.replaceable(keep, N))
        subsets = [set(order(keep, N, k)) for k in range(len(gaps) + 1)]
        assert [len(subset & gaps) for subset in subsets] == list(range(len(gaps) + 1))
        assert all(a < b for a, b in itertools.pairwise(subsets))
        assert subsets[-1] == set(range(len(keep)))
        cut = layers.blocks(keep, N)
        sizes = [layers.depth(keep, N, subset) for subset in subsets]
        assert sizes == [len(keep) + sum(len(cut[i]) - 1 for i in subset) for subset in subsets]
        assert sizes[0] == len(keep) and sizes[-1] == N


def test_with_blocks_of_two_every_replacement_adds_one_layer():
    keep = patterns.every_nth(12)
    assert [layers.depth(keep, 12, layers.last_blocks(keep, 12, k)) for k in range(6)] == [7, 8, 9, 10, 11, 12]


def test_the_pieces_of_any_subset_are_its_layers_one_by_one():
    draw = random.Random(1)
    for keep, N in any_keeps():
        cut = layers.blocks(keep, N)
        subset = draw.sample(range(len(keep)), draw.randrange(len(keep) + 1))
        one_by_one = []
        for i, block in enumerate(cut):
            one_by_one += [(True, n) for n in block] if i in subset else [(False, i)]
        plan = layers.pieces(keep, N, subset)
        assert [(piece.of_teacher, n) for piece in plan for n in piece.layers] == one_by_one
        assert all(a.of_teacher != b.of_teacher for a, b in itertools.pairwise(plan))
        origins = layers.origins(keep, N, subset)
        assert origins == tuple(n if of_teacher else keep[n] for of_teacher, n in one_by_one)
        assert len(origins) == layers.depth(keep, N, subset)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.blocks((1, 2), 4), "layers before 1 would belong to no block of the teacher: keep layer 0"),
        (lambda: layers.blocks((0, 4), 4), "layer 4 is to be kept, of a model whose layers are 0 to 3"),
        (lambda: layers.pieces((0, 2), 4, (2,)), "layer 2 is to be replaced, of a student whose layers are 0 to 1"),
        (lambda: layers.pieces((0, 2), 4, (-1,)), "layer -1 is to be replaced, of a student whose layers are 0 to 1"),
        (lambda: layers.last_blocks((0, 2), 4, 3), "3 blocks are to be replaced, and 2 stand for several layers: take"),
        (lambda: layers.first_blocks((0, 2), 4, -1), "-1 blocks are to be replaced, and 2 stand for several layers"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=f"^{message}"):
        call()
