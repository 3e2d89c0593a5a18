"""Teachers and students from elsewhere, each with its tokenizer.json: like Llama, Qwen and Gemma, tiny and random."""

import dataclasses
import json
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill import caching, data, exchange, frozen, metrics, rundir
from jaxdistill.across import Chunking, says
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.losses.chunks import ChunkKL
from jaxdistill.losses.objective import Term
from jaxdistill.models.families import gemma, llama
from jaxdistill.models.huggingface import writing
from jaxdistill.models.transformer import Transformer
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.run import run
from jaxdistill.start import Truncated
from jaxdistill.teacher import Across, Cached

tokenizers = pytest.importorskip("tokenizers")
LENGTH = 48
MERGES = ["t h", "i n", "th e", "e r", "in g", "o r", "▁ the", "▁ a", "a n", "s t", "an d", "▁ ▁"]


def of_pieces(scheme, merges):
    """A BPE with byte fallback, and with a space before a text (Llama 2) or without (Gemma)."""
    merges = [tuple(merge.split()) for merge in merges]
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:()"
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    replace = tokenizers.normalizers.Replace(" ", "▁")
    prepend = [tokenizers.normalizers.Prepend("▁")] if scheme == "prepend" else []
    made.normalizer = tokenizers.normalizers.Sequence([*prepend, replace])
    strip = [tokenizers.decoders.Strip(" ", 1, 0)] if prepend else []
    steps = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    made.decoder = tokenizers.decoders.Sequence([*steps, *strip])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made, "</s>"


def of_bytes(texts):
    """A byte-level BPE that composes characters (Qwen)."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens(["<|im_start|>", "<|endoftext|>"])
    return made, "<|endoftext|>"


@pytest.fixture(scope="module")
def texts():
    return [topic[:1500] for _, topic in sorted(topics.items())[:30]]


@pytest.fixture(scope="module")
def models(texts, tmp_path_factory):
    """{name: the directory of an import}."""
    root = tmp_path_factory.mktemp("models")
    kinds = {
        "llama": (*of_pieces("prepend", MERGES), lambda size: llama.llama(size, 2, 16, 4, 2, 20)),
        "qwen": (*of_bytes(texts), lambda size: llama.qwen2(size, 2, 16, 4, 2, 20, tied=True)),
        "gemma": (
            *of_pieces("replace", MERGES[1::2]),
            lambda size: gemma.gemma2(2, 16, 2, 1, 20, head_size=8, vocab_size=size),
        ),
    }
    for seed, (name, (tokenizer, eos, config_of)) in enumerate(kinds.items()):
        hub = root / f"{name}-hub"
        hub.mkdir()
        config = config_of(max(tokenizer.get_vocab().values()) + 1)
        shapes, rng = jax.eval_shape(Transformer(config).init, jax.random.key(0)), np.random.default_rng(seed)
        params = jax.tree.map(lambda x, rng=rng: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), shapes)
        writing.write_checkpoint(hub, config, params, positions=128)
        tokenizer.save(str(hub / "tokenizer.json"))
        (hub / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        exchange.import_model(hub, root / name)
    return root


@pytest.fixture(scope="module")
def source(texts, tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    for number, text in enumerate(texts):
        (root / f"{number:02}.txt").write_text(text)
    return data.Files(str(root), validation=0.1)


def tokens_of(models, name, source):
    return data.Tokens(source, data.HuggingFace(str(models / name / "tokenizer")), LENGTH, validation_windows=8)


@pytest.mark.parametrize(("teacher", "student"), [("llama", "qwen"), ("qwen", "gemma"), ("gemma", "llama")])
def test_chunks_spell_the_same_on_both_sides_and_hold_all_that_the_teacher_says_of_them(
    models, source, teacher, student
):
    tokens, chunking = tokens_of(models, student, source), Chunking(debias="none", gamma=0.0)
    dataset = data.prepare(tokens, None, True)
    paired, marks = frozen.beside(models / teacher, Across("", chunking), tokens, dataset, None, True)
    batch, mesh = paired.batch(4, 0, 0), Mesh().build(jax.devices()[:1])
    model, params = frozen.load(models / teacher, "float32", None, mesh)
    own = batch.beside.batch
    head = model.head(params, model.hidden(params, own.tokens_BL, own.segment_BL, own.position_BL)[0])
    said = says(head, batch, chunking, *marks)
    logp_BLV = special.log_softmax(np.float64(head.logits()), axis=-1)
    logp_BL = np.take_along_axis(logp_BLV, np.asarray(own.label_BL)[..., None], -1)[..., 0]
    other = data.load_tokenizer(models / teacher / "tokenizer").token_bytes
    tables, prefixes = (other.of_id, dataset.tokenizer.token_bytes.of_id), (other.prefix, False)
    chunk_BL, label_BL = batch.beside.chunks.teacher_BL, own.label_BL
    rows = np.argwhere(np.asarray(said.is_real_BC))
    assert len(rows) > 100 and any((chunk_BL[row] == chunk).sum() > 1 for row, chunk in rows)
    for row, chunk in rows:
        mine, theirs = chunk_BL[row] == chunk, np.asarray(said.chunk_BL)[row] == chunk
        assert abs(logp_BL[row][mine].sum() - said.logp_BC[row, chunk]) < 1e-3
        spelt = [
            b"".join(table[token] for token in labels)
            for table, labels in zip(tables, (label_BL[row][mine], batch.label_BL[row][theirs]), strict=True)
        ]
        assert spelt[0].removeprefix(b" ") == spelt[1].removeprefix(b" ")  # one may begin a document with a space
        assert spelt[0] == spelt[1] or any(prefixes) or dataset.tokenizer.token_bytes.prefix


def test_an_imported_student_learns_from_an_imported_teacher_and_from_its_cache_alike(models, source, tiny, tmp_path):
    start, chunking = Truncated(str(models / "qwen"), (0, 1)), Chunking(gamma=0.0)  # random teachers expect no boundary
    online = dataclasses.replace(
        load_module(tiny).supervised(),
        model=rundir.read_config(models / "qwen").model,
        data=tokens_of(models, "qwen", source),
        start=start,
        teacher=Across(str(models / "gemma"), chunking),
        objective={"alm": Term(ChunkKL())},
        steps=3,
        log_every=1,
        checkpoint_every=0,
    )
    cached = dataclasses.replace(online, teacher=Cached(str(models / "gemma"), chunking))
    caching.build(cached.sources["cache"], tmp_path / "cache", quiet=True)
    alm = []
    for name, experiment in (("online", online), ("cached", cached)):
        run(experiment, tmp_path / name, quiet=True)
        alm.append([row["alm"] for row in metrics.read(tmp_path / name / "metrics.jsonl") if "alm" in row])
    assert len(alm[0]) == 3 and min(alm[0]) > 0.1
    np.testing.assert_allclose(alm[0], alm[1], rtol=2e-3)


def test_a_normaliser_that_loses_text_is_refused_with_its_first_bytes(models, source, texts, tmp_path):
    for split, text in (("train", "the cafe\u0301 is "), ("validation", "")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(text + texts[0], encoding="utf-8")
    decomposed = data.Files(str(tmp_path / "train"), validation_path=str(tmp_path / "validation"))
    tokens = dataclasses.replace(tokens_of(models, "gemma", decomposed), validation_windows=None)
    dataset = data.prepare(tokens, None, True)
    with pytest.raises(
        InputError, match=r"the teacher's changes 1 of .* from byte 7 on, b'e\\xcc\\x81 is T' comes back"
    ):
        frozen.beside(models / "qwen", Across(""), tokens, dataset, None, True)
