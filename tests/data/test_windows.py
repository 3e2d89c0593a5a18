import jax
import numpy as np
import pytest

from jaxdistill.data import Batch
from jaxdistill.data.windows import Windows

EOS = 9


def windows(*documents, length):
    return Windows(np.array([t for document in documents for t in [*document, EOS]], np.uint16), length, EOS)


def test_documents_of_a_few_tokens_pack_as_by_hand():
    made = windows([1, 2, 3], [4], [5, 6], length=4)  # 1 2 3 9 4 9 5 6 9
    assert len(made) == 2
    batch = made.batch(np.array([0, 1]))
    assert batch.tokens_BL.tolist() == [[1, 2, 3, 9], [4, 9, 5, 6]]
    assert batch.label_BL.tolist() == [[2, 3, 9, 4], [9, 5, 6, 9]]
    assert batch.weight_BL.tolist() == [[1, 1, 1, 0], [1, 0, 1, 1]]
    assert batch.segment_BL.tolist() == [[1, 1, 1, 1], [1, 1, 2, 2]]
    assert batch.position_BL.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]


def test_the_last_window_is_padded_without_weight():
    batch = windows([1, 2, 3], [4], [5], length=5).batch(np.array([1]))  # 1 2 3 9 4 | 9 5 9
    assert batch.tokens_BL.tolist() == [[9, 5, 9, 9, 9]]
    assert batch.label_BL.tolist() == [[5, 9, 9, 9, 9]]
    assert batch.weight_BL.tolist() == [[0, 1, 0, 0, 0]]
    assert batch.segment_BL.tolist() == [[1, 2, 2, 0, 0]]
    assert batch.position_BL[0, :3].tolist() == [0, 0, 1]


def test_window_minus_one_is_all_padding():
    batch = windows([1, 2, 3], length=2).batch(np.array([-1, 0]))
    assert batch.weight_BL.tolist() == [[0, 0], [1, 1]]
    assert batch.segment_BL.tolist() == [[0, 0], [1, 1]]
    assert batch.tokens_BL.tolist() == [[EOS, EOS], [1, 2]]


def naive(documents, length):
    """The same packing, one token at a time."""
    stream = [(t, d) for d, document in enumerate(documents) for t in [*document, EOS]]
    rows = []
    for first in range(0, len(stream) - 1, length):
        part = stream[first : first + length + 1]
        row, segment, position = [], 0, 0
        for place in range(length):
            if place >= len(part):
                row.append((EOS, EOS, 0, 0, None))
                continue
            opens = place == 0 or part[place][1] != part[place - 1][1]
            segment, position = (segment + 1, 0) if opens else (segment, position + 1)
            label, owner = part[place + 1] if place + 1 < len(part) else (EOS, None)
            row.append((part[place][0], label, float(owner == part[place][1]), segment, position))
        rows.append(row)
    return rows


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 300])
def test_packing_agrees_with_one_token_at_a_time(length):
    generator = np.random.default_rng(length)
    documents = [generator.integers(0, EOS, size).tolist() for size in generator.poisson(4, 40)]
    made = windows(*documents, length=length)
    batch = made.batch(np.arange(len(made)))
    expected = naive(documents, length)
    assert len(expected) == len(made)
    for b, row in enumerate(expected):
        for at, (token, label, weight, segment, position) in enumerate(row):
            got = (batch.tokens_BL[b, at], batch.label_BL[b, at], batch.weight_BL[b, at], batch.segment_BL[b, at])
            assert got == (token, label, weight, segment)
            assert position is None or batch.position_BL[b, at] == position


@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_every_token_that_follows_another_of_its_document_is_a_label_exactly_once(length):
    documents = [[1, 2, 3], [], [4], [5, 6, 7, 8], [1]]
    made = windows(*documents, length=length)
    batch = made.batch(np.arange(len(made)))
    labels = batch.label_BL[batch.weight_BL == 1]
    expected = [t for document in documents for t in [*document, EOS][1:]]
    assert sorted(labels.tolist()) == sorted(expected)


def test_a_batch_is_a_pytree_of_int32_and_float32():
    batch = windows([1, 2, 3], length=2).batch(np.array([0]))
    assert [leaf.dtype for leaf in jax.tree.leaves(batch)] == [np.int32, np.int32, np.float32, np.int32, np.int32]
    assert {leaf.shape for leaf in jax.tree.leaves(batch)} == {(1, 2)}
    doubled = jax.jit(lambda batch: jax.tree.map(lambda x: 2 * x, batch))(batch)
    assert isinstance(doubled, Batch)
    assert doubled.tokens_BL.tolist() == [[2, 4]]
