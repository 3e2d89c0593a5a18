import itertools
import math

import jax
import numpy as np
import pytest

from jaxdistill.data import Bytes, Files, Markov, SentencePiece, Tokens, prepare
from jaxdistill.errors import InputError

LENGTH = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """108 train windows, no two of them alike, and 11 validation windows."""
    source = Markov(alphabet=50, order=0, concentration=5.0, seed=0, num_documents=21, length=40)
    return prepare(Tokens(source, Bytes(), LENGTH), cache=tmp_path_factory.mktemp("cache"), quiet=True)


@pytest.fixture(scope="module")
def number(dataset):
    """A function from a batch to the numbers of its windows."""
    tokens_WL = dataset.train.batch(np.arange(dataset.num_windows)).tokens_BL
    lookup = {row.tobytes(): i for i, row in enumerate(tokens_WL)}
    assert len(lookup) == dataset.num_windows
    return lambda batch: [lookup[row.tobytes()] for row in batch.tokens_BL]


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_sizes_are_those_of_the_text(dataset):
    assert dataset.train_tokens == 21 * 41
    assert dataset.validation_tokens == 2 * 41
    assert dataset.num_windows == math.ceil((21 * 41 - 1) / LENGTH)
    assert dataset.vocab_size == 257
    assert dataset.bytes_per_token == 40 / 41
    assert dataset.manifest["train"]["documents"] == 21
    assert dataset.manifest["validation"]["source"]["entropy_rate"] > 0


def test_every_epoch_is_another_permutation_of_all_windows(dataset, number):
    windows = dataset.num_windows
    order = [n for step in range(3 * windows // 4 + 1) for n in number(dataset.batch(4, 0, step))]
    epochs = [tuple(order[windows * e : windows * (e + 1)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(windows))
    assert len({*epochs, tuple(range(windows))}) == 4


def test_the_seed_gives_the_order_and_neighbouring_seeds_share_no_epoch(dataset, number):
    windows = dataset.num_windows
    epochs = {
        (seed, epoch): tuple(number(dataset.batch(windows, seed, epoch))) for seed in range(4) for epoch in range(4)
    }
    assert len(set(epochs.values())) == 16


def test_the_order_is_the_one_it_was(dataset, number):
    # Grain's shuffle decides; a change here means that a resumed run would see other data.
    assert number(dataset.batch(8, 7, 0)) == [28, 84, 89, 45, 64, 81, 17, 87]


def test_a_batch_depends_on_nothing_but_seed_and_step(dataset):
    first = dataset.batch(4, 1, 30)
    for seed, step in ((0, 0), (1, 31), (2, 30)):
        assert not equal(first, dataset.batch(4, seed, step))
    assert equal(first, dataset.batch(4, 1, 30))


def test_the_batch_size_does_not_change_the_order(dataset, number):
    wide = number(dataset.batch(12, 3, 2))
    assert wide == [n for step in range(6, 9) for n in number(dataset.batch(4, 3, step))]


def test_batches_are_the_batch_of_every_step_from_any_start(dataset):
    for start, stop in ((0, 60), (17, 50), (1000, 1003)):
        made = list(dataset.batches(4, 5, start, stop))
        assert len(made) == stop - start
        assert all(equal(batch, dataset.batch(4, 5, step)) for step, batch in enumerate(made, start))


def test_batches_without_a_stop_go_on_past_the_epoch(dataset):
    steps = 3 * dataset.num_windows // 4
    made = list(itertools.islice(dataset.batches(4, 5), steps))
    assert equal(made[-1], dataset.batch(4, 5, steps - 1))


def test_no_steps_are_no_batches(dataset):
    assert list(dataset.batches(4, 0, 7, 7)) == []


def test_the_rows_of_a_host_are_those_of_the_global_batch(dataset):
    for rows in ([0, 1], [2], range(3, 6), np.array([0, 3])):

        def own(batch, rows=rows):
            return jax.tree.map(lambda x: x[np.asarray(rows)], batch)

        assert equal(own(dataset.batch(6, 0, 9)), dataset.batch(6, 0, 9, rows))
        assert equal(own(dataset.batch(6, 0, 9)), next(dataset.batches(6, 0, 9, rows=rows)))
        for whole, part in zip(dataset.validation(6), dataset.validation(6, rows), strict=True):
            assert equal(own(whole), part)


def test_validation_sees_every_window_once_and_fills_up_without_weight(dataset):
    batches = list(dataset.validation(4))
    windows = len(dataset.held_out)
    assert windows == 11 and [len(batch.tokens_BL) for batch in batches] == [4, 4, 4]
    tokens = np.concatenate([batch.tokens_BL for batch in batches])
    assert np.array_equal(tokens[:windows], dataset.held_out.batch(np.arange(windows)).tokens_BL)
    assert batches[-1].weight_BL[3:].sum() == 0
    # Every token but the first of each of the two documents is predicted.
    assert sum(batch.weight_BL.sum() for batch in batches) == 2 * 40


def test_a_few_validation_windows_are_spread_over_the_split(tmp_path):
    source = Markov(alphabet=50, order=0, concentration=5.0, seed=0, num_documents=21, length=40)
    few = prepare(Tokens(source, Bytes(), LENGTH, validation_windows=3), cache=tmp_path, quiet=True)
    (batch,) = few.validation(3)
    assert np.array_equal(batch.tokens_BL, few.held_out.batch(np.array([0, 3, 7])).tokens_BL)
    with pytest.raises(InputError, match="the validation split has 11 windows of length 8, not 12"):
        prepare(Tokens(source, Bytes(), LENGTH, validation_windows=12), cache=tmp_path, quiet=True)


def test_a_markov_document_can_fill_a_window_exactly(tmp_path):
    source = Markov(alphabet=4, order=1, concentration=1.0, seed=0, num_documents=5, length=7)
    made = prepare(Tokens(source, Bytes(), LENGTH), cache=tmp_path, quiet=True)
    batch = made.train.batch(np.arange(5))
    assert made.num_windows == 5
    assert (batch.segment_BL[:, :7] == 1).all()
    assert batch.weight_BL.tolist() == [[1] * 7 + [0]] * 5
    assert (batch.label_BL[:, 6] == 256).all()


def test_parts_of_the_train_split_share_no_document_and_validate_on_the_same(texts, tmp_path):
    source = texts([f"document {i}" for i in range(100)], ["held out"])
    teacher, student = (prepare(Tokens(source, Bytes(), 16, part=(i, 2)), cache=tmp_path, quiet=True) for i in (0, 1))
    parts = [set(made.tokenizer.decode(made.train.tokens_T).split("document")) for made in (teacher, student)]
    assert len(parts[0]) + len(parts[1]) == 102 and parts[0] & parts[1] == {""}
    assert all(equal(*pair) for pair in zip(teacher.validation(1), student.validation(1), strict=True))


def test_parts_share_one_trained_tokenizer(texts, tmp_path):
    source = texts([f"the words of document {i}" for i in range(100)])
    both = [prepare(Tokens(source, SentencePiece(285), 8, part=(i, 2)), tmp_path, True) for i in (0, 1)]
    assert both[0].tokenizer.fingerprint == both[1].tokenizer.fingerprint


def test_a_changed_text_is_read_anew(texts, tmp_path):
    tokens = Tokens(texts(["first text"]), Bytes(), 4)
    prepare(tokens, cache=tmp_path, quiet=True)
    texts(["other text"])
    made = prepare(tokens, cache=tmp_path, quiet=True)
    assert made.tokenizer.decode(made.train.tokens_T) == "other text"


def test_too_little_text_is_refused_with_the_number_of_windows(dataset):
    sentence = f"a batch of 200 windows needs more text: the train split has {dataset.num_windows} of them"
    for ask in (lambda: dataset.batch(200, 0, 0), lambda: dataset.batches(200, 0)):
        with pytest.raises(InputError, match=sentence):
            ask()


def test_a_validation_split_of_one_token_is_refused(texts, tmp_path):
    with pytest.raises(InputError, match="the validation split has 0 windows of length 8, not 1"):
        prepare(Tokens(texts(["some text"], [""]), Bytes(), 8), cache=tmp_path, quiet=True)


def test_unusable_arguments_are_refused_at_once(dataset):
    for ask in (dataset.batch, dataset.batches):
        for seed, step in ((-1, 0), (0, -1)):
            with pytest.raises(InputError, match=f"seed={seed} and step={step} must not be negative"):
                ask(4, seed, step)
        for rows in ([], [-1, 2], range(5)):
            with pytest.raises(InputError, match=r"are no rows of a batch of 4: there must be some, from 0 to 3"):
                ask(4, 0, 0, rows=rows)
    with pytest.raises(InputError, match="are no rows of a batch"):
        dataset.validation(4, range(5))


def test_unusable_settings_are_refused():
    source = Files("anything")
    for change, sentence in (
        ({"length": 0}, "length=0 must be at least 1"),
        ({"part": (2, 2)}, r"part=\(2, 2\) must be \(i, n\) with 0 <= i < n"),
        ({"part": (-1, 2)}, r"part=\(-1, 2\)"),
        ({"validation_windows": 0}, "validation_windows=0 must be at least 1, or None for all"),
    ):
        with pytest.raises(InputError, match=sentence):
            Tokens(**{"source": source, "tokenizer": Bytes(), "length": 8, **change})


def test_a_missing_text_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="none' does not exist"):
        prepare(Tokens(Files(str(tmp_path / "none")), Bytes(), 8), cache=tmp_path, quiet=True)
