"""Sequences of ids come back as they are, each a window of its own, whatever file they lie in."""

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxdistill.data import Bytes, SentencePiece, Sequences, Tokens, prepare
from jaxdistill.data.windows import Windows
from jaxdistill.errors import InputError

EOS = 256


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.fixture
def write(tmp_path):
    """write(name, sequences) -> the file, as the end of its name says."""

    def write(name, sequences):
        file = tmp_path / "ids" / name
        file.parent.mkdir(exist_ok=True)
        if file.suffix == ".npy":
            np.save(file, np.asarray(sequences))
        else:
            pq.write_table(pa.table({"input_ids": sequences}), file)
        return file

    return write


@pytest.fixture
def made(write, tmp_path):
    """made(sequences, **fields of Tokens and Sequences) -> the Dataset of one Parquet file."""

    def made(sequences, length=4, every=100, **fields):
        source = Sequences(str(write("a.parquet", sequences)), validation_every=every)
        return prepare(Tokens(source, Bytes(), length, **fields), cache=tmp_path / "cache", quiet=True)

    return made


def random_sequences(number, seed=0, longest=9):
    rng = np.random.default_rng(seed)
    return [rng.choice([1, 2, 3, EOS], rng.integers(1, longest + 1)).tolist() for _ in range(number)]


def test_a_window_is_one_sequence_its_next_tokens_and_padding(made):
    batch = made([[9] * 4, [1, 2, 3, 4, 5], [6, 7]]).train.batch(np.array([0, 1, -1]))
    assert batch.tokens_BL.tolist() == [[1, 2, 3, 4], [6, 7, EOS, EOS], [EOS] * 4]
    assert batch.label_BL.tolist() == [[2, 3, 4, 5], [7, EOS, EOS, EOS], [EOS] * 4]
    assert batch.weight_BL.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [0] * 4]
    assert batch.segment_BL.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0] * 4]
    assert batch.position_BL[0].tolist() == [0, 1, 2, 3]
    assert [leaf.dtype for leaf in jax.tree.leaves(batch)] == [np.int32, np.int32, np.float32, np.int32, np.int32]


def test_documents_within_a_sequence_are_told_apart_as_in_any_window(made):
    sequences = random_sequences(40)
    dataset = made([[1], *sequences], length=8)
    batch = dataset.train.batch(np.arange(40))
    for row, sequence in enumerate(sequences):
        alone = Windows(np.array(sequence), 8, EOS).batch(np.array([0]))
        assert equal(jax.tree.map(lambda x, row=row: x[row : row + 1], batch), alone)


def test_every_nth_sequence_is_for_validation_and_the_first_always(made):
    dataset = made([[i, i] for i in range(10)], every=4)
    assert [int(dataset.held_out.sequence(i)[0]) for i in range(3)] == [0, 4, 8]
    assert [int(dataset.train.sequence(i)[0]) for i in range(7)] == [1, 2, 3, 5, 6, 7, 9]
    few = made([[i, i] for i in range(3)])
    assert len(few.held_out) == 1 and len(few.train) == 2


def test_parts_take_turns_and_validate_on_the_same(made):
    sequences = [[i, i] for i in range(11)]
    parts = [made(sequences, part=(i, 3)) for i in range(3)]
    assert [[int(p.train.sequence(i)[0]) for i in range(len(p.train))] for p in parts] == [
        [1, 4, 7, 10],
        [2, 5, 8],
        [3, 6, 9],
    ]
    assert all(equal(next(parts[0].validation(2)), next(part.validation(2))) for part in parts[1:])


def test_files_are_read_in_the_order_of_their_names_whatever_their_format(write, tmp_path):
    write("b.npy", np.array([[3, 3], [4, 4]], np.uint16))
    write("a.parquet", [[1, 1, 1], [2]])
    write("c.npy", np.array([[5, 5]], np.int64))
    (tmp_path / "ids" / "notes.txt").write_text("of no interest")
    for files in ("ids", "ids/*"):
        dataset = prepare(Tokens(Sequences(str(tmp_path / files)), Bytes(), 2), cache=tmp_path, quiet=True)
        assert [dataset.train.sequence(i).tolist() for i in range(4)] == [[2], [3, 3], [4, 4], [5, 5]]
        assert dataset.held_out.sequence(0).tolist() == [1, 1, 1]


def test_an_epoch_is_a_permutation_and_rows_of_hosts_are_the_global_batch(made):
    dataset = made([[i, i] for i in range(21)])
    order = np.concatenate([dataset.batch(4, 3, step).tokens_BL[:, 0] for step in range(5)])
    assert sorted(order.tolist()) == list(range(1, 21)) and order.tolist() != sorted(order.tolist())
    again = list(dataset.batches(4, 3, 0, 5))
    assert np.array_equal(np.concatenate([batch.tokens_BL[:, 0] for batch in again]), order)
    halves = [dataset.batch(4, 3, 1, rows) for rows in ([0], range(1, 4))]
    assert equal(dataset.batch(4, 3, 1), jax.tree.map(lambda *parts: np.concatenate(parts), *halves))
    assert dataset.first_windows(100, 3).tolist() == list(range(20))


def test_tokens_and_bytes_are_those_of_the_split(made):
    dataset = made([list(b"abc"), [*b"de", EOS], list("é".encode())], every=2)
    assert (dataset.num_windows, dataset.train_tokens, dataset.validation_tokens) == (1, 3, 5)
    assert dataset.bytes_per_token == 5 / 5
    assert dataset.manifest["train"]["bytes"] == 2  # the end of a document has no text
    assert dataset.manifest["train"]["source"]["source"] == "sequences"


def test_what_was_read_is_found_again_and_what_changed_is_read_anew(made, write, tmp_path):
    first = made([[1, 2], [3, 4]]).manifest["train"]
    stored = list((tmp_path / "cache" / "sequences").iterdir())
    assert made([[1, 2], [3, 4]], length=9, every=2).manifest["train"]["sha256"] == first["sha256"]
    assert list((tmp_path / "cache" / "sequences").iterdir()) == stored
    other = made([[1, 2], [3, 5]])
    assert other.train.sequence(0).tolist() == [3, 5]
    assert other.manifest["train"]["source_fingerprint"] != first["source_fingerprint"]


@pytest.mark.parametrize("file", ["tokens.bin", "starts.npy", "manifest.json"])
def test_a_damaged_copy_is_refused(made, tmp_path, file):
    made([[1, 2], [3, 4]])
    (stored,) = (tmp_path / "cache" / "sequences").iterdir()
    content = (stored / file).read_bytes()
    (stored / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"is damaged .*: delete it to have it made again"):
        made([[1, 2], [3, 4]])


def test_a_sequence_that_does_not_fit_is_refused_with_the_length_that_would(made):
    sequences = [[1], [1] * 5, [1] * 8, [1] * 7]
    with pytest.raises(InputError, match=r"sequence 2 of .* has 8 tokens, and .* length=4 takes 5: set length=7"):
        made(sequences)
    assert made(sequences, length=7).num_windows == 3


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.parquet", [[1], [257]], r"row 1 of .*a\.parquet holds the id 257, and the tokenizer has 257"),
        ("a.npy", [[1, -1]], r"row 0 of .*a\.npy holds the id -1"),
        ("a.parquet", [[1], []], r"row 1 of .* holds no integers"),
        ("a.parquet", [[1], None], r"row 1 of .* holds no integers"),
        ("a.parquet", [[1], [1, None]], r"row 1 of .* holds no integers"),
        ("a.npy", [[1.0, 2.0]], r"row 0 of .* holds no integers"),
        ("a.npy", [[True]], r"row 0 of .* holds no integers"),
        ("a.npy", [1, 2], r"a\.npy holds no sequences: write an array of two dimensions"),
        ("a.npy", np.zeros((0, 3), int), r"holds no sequences: its files have no rows"),
        ("a.parquet", [1, 2], r"has no column 'input_ids' of lists of integers"),
        ("a.parquet", ["text"], r"has no column 'input_ids' of lists of integers"),
    ],
)
def test_what_is_no_sequence_of_ids_is_refused_in_one_sentence(write, tmp_path, name, content, sentence):
    source = Sequences(str(write(name, content)))
    with pytest.raises(InputError, match=sentence):
        prepare(Tokens(source, Bytes(), 4), cache=tmp_path, quiet=True)
    assert not (tmp_path / "sequences").exists() or not list((tmp_path / "sequences").iterdir())


def test_files_that_are_none_are_refused(write, tmp_path):
    (tmp_path / "ids").mkdir()
    for name in ("a.npy", "a.parquet"):
        (tmp_path / "ids" / name).write_bytes(b"of another kind")
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            prepare(Tokens(Sequences(str(tmp_path / "ids" / name)), Bytes(), 4), cache=tmp_path, quiet=True)
    for files in ("none", "none/*.npy", "ids/*.txt"):
        with pytest.raises(InputError, match=r"names no file of sequences: their names end in \.npy or \.parquet"):
            Sequences(str(tmp_path / files)).fingerprint()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "ids" / "a.parquet")
    with pytest.raises(InputError, match=r"has no column 'input_ids' .*: its columns are \['text'\]"):
        prepare(Tokens(Sequences(str(tmp_path / "ids" / "a.parquet")), Bytes(), 4), cache=tmp_path, quiet=True)


def test_what_leaves_nothing_to_do_is_refused(made, tmp_path):
    with pytest.raises(InputError, match="validation_every=1 leaves nothing to train on"):
        Sequences("ids", validation_every=1)
    for sequences, part in (([[1, 1]], (0, 1)), ([[1, 1]] * 3, (2, 3))):
        with pytest.raises(
            InputError, match=rf"holds {len(sequences)} sequences, of which part {part[0]} of {part[1]}"
        ):
            made(sequences, part=part)
    with pytest.raises(InputError, match="holds no sequence of two tokens: there is nothing to predict"):
        made([[1], [2]])
    source = Sequences(str(tmp_path / "ids" / "a.parquet"))
    with pytest.raises(InputError, match="holds ids and no text: name the tokenizer that made them"):
        prepare(Tokens(source, SentencePiece(300), 4), cache=tmp_path, quiet=True)
