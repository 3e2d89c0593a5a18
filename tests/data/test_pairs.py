"""Paired windows: against one window at a time, from the documents themselves, for random and for real tokenizers."""

import dataclasses
import hashlib
import itertools

import jax
import numpy as np
import pytest

from jaxdistill.align import NO_CHUNK, reference
from jaxdistill.data import Bytes, HuggingFace, SentencePiece, Sequences, Tokens, pairs, prepare
from jaxdistill.data.pairs import Paired, Spelled, pair
from jaxdistill.data.token_bytes import TokenBytes
from jaxdistill.data.windows import Windows
from jaxdistill.errors import InputError

END = (256,)  # the symbol of an end of document
PIECES = ["the", " cat", " ", "  ", "\n", "naïve", "é€", "😀", "你好", "a", "b", " the", "—", "\u2581", "\0", "שלום"]
LINES = ["the cat sat on the mat", " naïve words — 你好 😀", "", "def f(x):\n    return x + 1\n", "a", "  the  cat"]


def random_documents(seed, count=25):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(PIECES, rng.poisson(5))) for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The longest of some random pieces of a text comes first; they begin and end anywhere, characters or not.

    `prefix` puts a space before a text unless it begins with U+2581, as SentencePiece models here do.
    """

    seed: int
    prefix: bool = False
    more: int = 40

    def build(self, source, fingerprint, cache=None, quiet=False):
        return GreedyTokenizer(self)


class GreedyTokenizer:
    def __init__(self, config):
        rng, text = np.random.default_rng(config.seed), " ".join(random_documents(config.seed)).encode()
        starts = rng.integers(0, len(text), config.more)
        pieces = {text[start : start + rng.integers(2, 9)] for start in starts} | {bytes([byte]) for byte in range(256)}
        table = [sorted(pieces)[place] for place in rng.permutation(len(pieces))]
        self.eos_id = int(rng.integers(0, len(table)))
        table.insert(self.eos_id, b"")
        self.vocab_size = len(table)
        self.token_bytes = TokenBytes(tuple(table), config.prefix)
        self.fingerprint = hashlib.sha256(repr(config).encode()).hexdigest()
        self._ids = {part: token for token, part in enumerate(table) if part}

    def encode(self, text):
        data, ids = text.encode(), []
        if self.token_bytes.prefix and text and text[0] != "\u2581":
            data = b" " + data
        while data:
            size = next(size for size in range(8, 0, -1) if data[:size] in self._ids)
            ids.append(self._ids[data[:size]])
            data = data[size:]
        return np.array(ids, np.int32)

    def normalize(self, text):
        return text


def stream(tokenizer, documents):
    """Every token of the documents as (id, number of its document, symbols)."""
    found = []
    for number, text in enumerate(documents):
        ids = tokenizer.encode(text).tolist()
        spelt = [tokenizer.token_bytes.of_id[token] for token in ids]
        if tokenizer.token_bytes.prefix and spelt:
            spelt[0] = spelt[0].removeprefix(b" ")
        assert b"".join(spelt) == text.encode()
        found += [(token, number, tuple(part)) for token, part in zip(ids, spelt, strict=True)]
        found.append((tokenizer.eos_id, number, END))
    return found


def spelled(tokenizer, documents, length):
    tokens_T = np.array([token for token, _, _ in stream(tokenizer, documents)], np.uint16)
    return Spelled.of(Windows(tokens_T, length, tokenizer.eos_id), tokenizer)


def starts(tokens):
    """The symbols before every token, and how many there are."""
    return list(itertools.accumulate((len(symbols) for _, _, symbols in tokens), initial=0))


def check_row(batch, row, tokens, first, length, eos_id):
    """The row holds these tokens from `first` on, and says of them what packing one token at a time says."""
    part = tokens[first : first + length + 1]
    documents = [number for _, number, _ in part]
    ids = [token for token, _, _ in part] + [eos_id] * (length + 1 - len(part))
    assert batch.tokens_BL[row].tolist() == ids[:-1] and batch.label_BL[row].tolist() == ids[1:]
    weight = [float(one == other) for one, other in itertools.pairwise(documents)]
    assert batch.weight_BL[row].tolist() == weight + [0] * (length - len(weight))
    inputs = documents[:length]
    assert batch.segment_BL[row].tolist() == [1 + n - inputs[0] for n in inputs] + [0] * (length - len(inputs))
    places = [place - inputs.index(number) for place, number in enumerate(inputs)]
    assert batch.position_BL[row, : len(places)].tolist() == places


def check_window(paired, batch, row, window, own, other):
    """A row of a paired batch against the definition of its chunks and the streams of both sides."""
    L, beside, at_own, at_other = paired.length, batch.beside, starts(own), starts(other)
    check_row(batch, row, own, window * L, L, paired.eos_id)
    begin = at_own[window * L + 1]
    first = next(place for place in range(1, len(other)) if at_other[place] >= begin)
    check_row(beside.batch, row, other, first - 1, paired.teacher.length, paired.teacher.eos_id)
    labels = [
        [symbols for _, _, symbols in part]
        for part in (other[first : first + paired.teacher.length], own[window * L + 1 : window * L + 1 + L])
    ]
    expected = reference.chunk_numbers(*labels, paired.at, (at_other[first] - begin, 0))
    for found_L, chunk_L in zip((beside.chunks.teacher_BL[row], beside.chunks.student_BL[row]), expected, strict=True):
        assert found_L.tolist() == chunk_L + [NO_CHUNK] * (len(found_L) - len(chunk_L))
    assert beside.chunks.is_real_BC[row].tolist() == [
        chunk <= max(expected[0]) for chunk in range(min(L, paired.teacher.length))
    ]


@pytest.mark.parametrize("at", ["bytes", "spaces"])
@pytest.mark.parametrize("prefixes", list(itertools.product([False, True], repeat=2)), ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_every_window_is_what_its_definition_says(seed, prefixes, at, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", [1, 2, 7, 64, 1024, 4096][seed])
    documents = random_documents(seed)
    tokenizers = [GreedyTokenizer(Greedy(2 * seed + n, prefix)) for n, prefix in enumerate(prefixes)]
    streams = [stream(tokenizer, documents) for tokenizer in tokenizers]
    for length, other_length in ((1, 1), (2, 5), (7, 4), (16, 24), (400, 500)):
        student, teacher = map(spelled, tokenizers, [documents] * 2, (length, other_length))
        paired = Paired(**vars(student), teacher=teacher, at=at)
        numbers = np.random.default_rng(seed).permutation(len(paired))
        batch = paired.batch(numbers)
        for row, window in enumerate(numbers):
            check_window(paired, batch, row, int(window), *streams)


def test_padding_is_padding_on_both_sides():
    tokenizers = [GreedyTokenizer(Greedy(seed)) for seed in (0, 1)]
    student, teacher = (spelled(tokenizer, LINES, 8) for tokenizer in tokenizers)
    paired = Paired(**vars(student), teacher=teacher, at="bytes")
    batch = paired.batch(np.array([-1, 0, -1]))
    for side in (batch, batch.beside.batch):
        assert not side.weight_BL[[0, 2]].any() and not side.segment_BL[[0, 2]].any()
        assert side.weight_BL[1].any()
    assert not batch.beside.chunks.is_real_BC[[0, 2]].any() and batch.beside.chunks.is_real_BC[1].any()
    for chunk_BL in (batch.beside.chunks.teacher_BL, batch.beside.chunks.student_BL):
        assert (chunk_BL[[0, 2]] == NO_CHUNK).all()


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1024])
@pytest.mark.parametrize("prefix", [False, True])
def test_tokens_and_symbols_are_found_from_one_another(block, prefix, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", block)
    monkeypatch.setattr(pairs, "READ", 3)
    tokenizer, documents = GreedyTokenizer(Greedy(3, prefix)), random_documents(3)
    side, at = spelled(tokenizer, documents, 8), starts(stream(tokenizer, documents))
    assert side.symbols_before(np.arange(len(at))).tolist() == at
    assert len(side.before) == 1 + -(-len(side.tokens_T) // block) and side.before[-1] == at[-1]
    found = side.first_from(np.arange(at[-1]))
    assert found.tolist() == [next(t for t, start in enumerate(at) if start >= symbol) for symbol in range(at[-1])]


@pytest.mark.parametrize("prefix", [False, True])
def test_the_symbols_of_all_windows_are_the_text_behind_its_first_token(prefix):
    tokenizer, documents = GreedyTokenizer(Greedy(4, prefix)), random_documents(4)
    side = spelled(tokenizer, documents, 16)
    first_B = np.arange(len(side)) * 16
    symbol_BY = side.spans(side.cut(first_B), first_B, 0).symbol_BY
    text = [symbol for document in documents for symbol in (*document.encode(), *END)]
    before = len(stream(tokenizer, documents)[0][2])
    assert symbol_BY[symbol_BY >= 0].tolist() == text[before:]


def test_with_one_tokenizer_both_sides_are_the_same_and_every_label_is_a_chunk():
    tokenizer, documents = GreedyTokenizer(Greedy(5)), random_documents(5)
    side = spelled(tokenizer, documents, 16)
    batch = Paired(**vars(side), teacher=side, at="bytes").batch(np.arange(-1, len(side)))
    beside, is_label_BL = batch.beside, np.arange(-16, len(side) * 16).reshape(-1, 16) < len(side.tokens_T) - 1
    is_label_BL[0] = False
    assert equal(dataclasses.replace(batch, beside=None), beside.batch)
    own_BL = np.where(is_label_BL, np.arange(16), NO_CHUNK)
    assert np.array_equal(beside.chunks.teacher_BL, own_BL) and np.array_equal(beside.chunks.student_BL, own_BL)
    assert np.array_equal(beside.chunks.is_real_BC, is_label_BL)


def test_texts_that_differ_are_refused_with_the_place():
    student, teacher = (
        spelled(GreedyTokenizer(Greedy(seed)), [f"a naïve cat sat on the {last}"], 40)
        for seed, last in enumerate(("mat", "hat"))
    )
    with pytest.raises(
        InputError, match=r"row 0 is not the same text .* teacher has b'hat<eos>' .* student b'mat<eos>'"
    ):
        Paired(**vars(student), teacher=teacher, at="bytes").batch(np.array([0]))


def equal(one, other):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    from jaxdistill.data import Files

    root = tmp_path_factory.mktemp("text")
    for name, texts in (("train", LINES * 4), ("validation", LINES)):
        (root / name).mkdir()
        for number, text in enumerate(texts):
            (root / name / f"{number:03}.txt").write_text(text, encoding="utf-8", newline="")
    return Files(str(root / "train"), validation_path=str(root / "validation"))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """byte_level(a part of the file or None, ...) -> a byte-level BPE with a space before a text."""
    tokenizers = pytest.importorskip("tokenizers")

    def write(name, normalizer=None, prefix=False):
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=290, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
        )
        made.train_from_iterator(LINES * 5, trainer)
        if normalizer is not None:
            made.normalizer = normalizer
        file = tmp_path_factory.mktemp("tokenizers") / f"{name}.json"
        made.save(str(file))
        return HuggingFace(str(file), "</s>")

    return write


def prepared(source, tokenizer, cache, length=16, **more):
    tokens = Tokens(source, tokenizer, length, **more)
    return tokens, prepare(tokens, cache, quiet=True)


def test_real_tokenizers_pair_with_one_another(source, byte_level, tmp_path):
    configs = [Bytes(), SentencePiece(285), SentencePiece(290, model_type="bpe"), byte_level("plain"), Greedy(0, True)]
    documents = {split: list(source.documents(split)) for split in ("train", "validation")}
    for config, other in itertools.permutations(configs, 2):
        tokens, dataset = prepared(source, config, tmp_path, 24)
        teacher = other.build(source, source.fingerprint(), tmp_path, True)
        paired = pair(tokens, dataset, teacher, cache=tmp_path, quiet=True)
        assert paired.vocab_size == dataset.vocab_size and paired.num_windows == dataset.num_windows
        for split, windows in (("train", paired.train), ("validation", paired.held_out)):
            streams = [stream(tokenizer, documents[split]) for tokenizer in (dataset.tokenizer, teacher)]
            batch = windows.batch(np.arange(len(windows)))
            for row in range(len(windows)):
                check_window(windows, batch, row, row, *streams)


def test_a_chunk_is_the_same_bytes_on_both_sides(source, tmp_path):
    tokens, dataset = prepared(source, SentencePiece(285), tmp_path)
    other = SentencePiece(290, model_type="bpe").build(source, source.fingerprint(), tmp_path, True)
    count = 0
    for batch in pair(tokens, dataset, other, cache=tmp_path, quiet=True).validation(4):
        chunks = batch.beside.chunks
        sides = (
            (batch.beside.batch.label_BL, chunks.teacher_BL, other.token_bytes.of_id, other.eos_id),
            (batch.label_BL, chunks.student_BL, dataset.tokenizer.token_bytes.of_id, dataset.tokenizer.eos_id),
        )
        for row, chunk in np.argwhere(chunks.is_real_BC):
            spelt = [
                b"".join(
                    b"<end>" if token == eos_id else table[token] for token in label_BL[row, chunk_BL[row] == chunk]
                )
                for label_BL, chunk_BL, table, eos_id in sides
            ]
            assert spelt[0] == spelt[1] != b""
            count += 1
    assert count > 50


@pytest.fixture(scope="module")
def both(source, tmp_path_factory):
    """A dataset of bytes, and the same paired with another tokenizer."""
    cache = tmp_path_factory.mktemp("cache")
    tokens, dataset = prepared(source, Bytes(), cache, 8, validation_windows=11)
    return dataset, pair(tokens, dataset, GreedyTokenizer(Greedy(1)), cache=cache, quiet=True)


def test_the_students_side_is_what_it_was(both):
    dataset, paired = both
    for step in (0, 5, 40):
        batch = paired.batch(4, 3, step)
        assert batch.beside is not None
        assert equal(dataclasses.replace(batch, beside=None), dataset.batch(4, 3, step))
    for one, other in zip(dataset.validation(4), paired.validation(4), strict=True):
        assert equal(one, dataclasses.replace(other, beside=None))


def test_batches_go_on_from_any_step(both):
    _, paired = both
    made = list(paired.batches(4, 5, 17, 30))
    assert len(made) == 13
    assert all(equal(batch, paired.batch(4, 5, step)) for step, batch in enumerate(made, 17))


def test_the_rows_of_all_hosts_are_the_batch(both):
    _, paired = both
    hosts = ([0, 1], [2], range(3, 6))
    joined = lambda parts: jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)  # noqa: E731
    assert equal(paired.batch(6, 0, 9), joined([paired.batch(6, 0, 9, rows) for rows in hosts]))
    for whole, *parts in zip(paired.validation(6), *(paired.validation(6, rows) for rows in hosts), strict=True):
        assert equal(whole, joined(parts))


def test_a_paired_batch_is_a_pytree(both):
    _, paired = both
    batch = paired.batch(2, 0, 0)
    shifted = jax.jit(lambda batch: jax.tree.map(lambda x: x, batch))(batch)
    assert equal(batch, shifted)
    types = [leaf.dtype for leaf in jax.tree.leaves(batch.beside)]
    assert types == [np.int32, np.int32, np.float32, np.int32, np.int32, np.int32, np.int32, np.bool_]


@pytest.mark.parametrize("held", [0.7, 0.9, 0.999])
def test_the_length_is_the_least_multiple_of_eight_that_holds_almost_all_text(source, tmp_path, held, monkeypatch):
    monkeypatch.setattr(pairs, "HELD", held)
    tokens, dataset = prepared(source, SentencePiece(285), tmp_path, 32)
    paired = pair(tokens, dataset, Bytes().build(source, ""), cache=tmp_path, quiet=True)
    size = len(paired.train.teacher.tokens_T)
    own = starts(stream(dataset.tokenizer, source.documents("train")))
    counts = [own[min(n * 32 + 33, len(own) - 1)] - own[n * 32 + 1] for n in range(len(paired.train))]  # of bytes
    fits = [n for n in range(8, size, 8) if sum(min(n, count) for count in counts) >= held * sum(counts)]
    assert paired.train.teacher.length == paired.held_out.teacher.length == min(fits)


def test_a_split_without_windows_is_paired_with_none(texts, tmp_path):
    source = texts([""], ["held out"])
    tokens, dataset = prepared(source, Bytes(), tmp_path)
    paired = pair(tokens, dataset, GreedyTokenizer(Greedy(0)), cache=tmp_path, quiet=True)
    assert paired.num_windows == 0 and paired.held_out.batch(np.array([0])).beside.chunks.is_real_BC.any()


def test_a_given_length_cuts_the_end(source, tmp_path):
    tokens, dataset = prepared(source, Bytes(), tmp_path, 16)
    batch = pair(tokens, dataset, dataset.tokenizer, length=5, cache=tmp_path, quiet=True).train.batch(np.arange(3))
    assert batch.beside.batch.tokens_BL.shape == (3, 5)
    assert batch.beside.chunks.student_BL.tolist() == [[0, 1, 2, 3, 4, *[NO_CHUNK] * 11]] * 3
    assert batch.beside.chunks.is_real_BC.tolist() == [[True] * 5] * 3


def test_parts_of_the_train_split_are_paired_with_themselves(source, texts, tmp_path):
    source = texts([f"document {number} of many" for number in range(60)], LINES)
    for part in ((0, 2), (1, 2)):
        tokens, dataset = prepared(source, Bytes(), tmp_path, part=part)
        paired = pair(tokens, dataset, GreedyTokenizer(Greedy(2)), cache=tmp_path, quiet=True)
        assert paired.train.batch(np.arange(len(paired.train))).beside.chunks.is_real_BC.any(axis=1).all()


def test_a_tokenizer_that_rewrites_documents_is_refused_on_either_side(source, byte_level, texts, tmp_path):
    from tokenizers import normalizers

    lower = byte_level("lower", normalizers.Lowercase())
    mixed = texts(["The Cat", "the cat"], ["the cat"])
    for student, teacher, side in ((lower, Bytes(), "student"), (Bytes(), lower, "teacher")):
        tokens, dataset = prepared(mixed, student, tmp_path, 4)
        sentence = (
            rf"the {side}'s changes 1 of 2 documents of the train split \(the tokenizer rewrites text .*b'The Cat'"
        )
        with pytest.raises(InputError, match=sentence):
            pair(tokens, dataset, teacher.build(mixed, ""), cache=tmp_path, quiet=True)
    tokens, dataset = prepared(texts(["the cat"], ["the cat"]), Bytes(), tmp_path, 4)
    assert pair(tokens, dataset, lower.build(mixed, ""), cache=tmp_path, quiet=True).num_windows


def test_tokens_without_bytes_are_refused(source, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "</s>": 2}, unk_token="[UNK]"))
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens(["</s>"])
    made.save(str(tmp_path / "pieces.json"))
    tokens, dataset = prepared(source, Bytes(), tmp_path)
    teacher = HuggingFace(str(tmp_path / "pieces.json"), "</s>").build(source, "")
    with pytest.raises(InputError, match="does not give every token bytes of its own"):
        pair(tokens, dataset, teacher, cache=tmp_path, quiet=True)


def test_ids_without_a_text_are_refused(tmp_path):
    np.save(tmp_path / "ids.npy", np.full((8, 9), 65))
    tokens, dataset = prepared(Sequences(str(tmp_path / "ids.npy"), 4), Bytes(), tmp_path, 8)
    with pytest.raises(InputError, match="the data are ids, and no text that another tokenizer could cut"):
        pair(tokens, dataset, dataset.tokenizer, cache=tmp_path, quiet=True)


def test_a_dataset_of_other_tokens_is_refused(texts, tmp_path):
    source = texts(["the cat", "the hat", "a mat", "a dog"])
    tokens, dataset = prepared(source, Bytes(), tmp_path, 4)
    sentence = "the train split was prepared from another text or part of it"
    with pytest.raises(InputError, match=sentence):
        pair(dataclasses.replace(tokens, part=(0, 2)), dataset, dataset.tokenizer, cache=tmp_path, quiet=True)
    texts(["another text"])
    with pytest.raises(InputError, match=sentence):
        pair(tokens, dataset, dataset.tokenizer, cache=tmp_path, quiet=True)
    with pytest.raises(InputError, match="length=0 of the teacher's rows must be at least 1"):
        pair(tokens, dataset, dataset.tokenizer, length=0, cache=tmp_path, quiet=True)
