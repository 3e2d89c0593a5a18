"""Students of imported models: unequal blocks, windows that follow their layers, embeddings that must be untied."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from jaxdistill import analysis, data, evals, exchange, rundir
from jaxdistill.experiment import load_module
from jaxdistill.interpolate import curve, export
from jaxdistill.interpolate.pair import Pair, choose
from jaxdistill.models.design import AttentionDesign, Window
from jaxdistill.models.families import gemma, gpt, llama
from jaxdistill.models.huggingface import reading, writing
from jaxdistill.models.surgery import patterns
from jaxdistill.models.surgery.spliced import Spliced, plan
from jaxdistill.models.surgery.truncate import truncate
from jaxdistill.models.transformer import Transformer
from jaxdistill.run import run
from jaxdistill.start import Truncated
from jaxdistill.teacher import Online

tokenizers = pytest.importorskip("tokenizers")

CASES = {
    "llama": (llama.llama(257, 6, 16, 4, 2, 20), patterns.every_nth(6, 2, first=2, last=1), "first"),
    "qwen2": (llama.qwen2(257, 6, 16, 4, 2, 20, tied=True), (0, 3, 4, 5), "last"),
    "gpt_neox": (gpt.pythia(5, 32, 4, 257), (0, 2, 3), "last"),
    "gemma2": (gemma.gemma2(6, 16, 4, 2, 20, head_size=8, vocab_size=257, window=9), (0, 1, 4, 5), "last"),
    "mistral": (llama.llama(257, 5, 16, 4, 2, 20, attention=AttentionDesign(window=Window(9))), (0, 1, 4), "last"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tiny, tmp_path_factory):
    """An imported model of bfloat16 numbers and a student that has seen four batches."""
    where = tmp_path_factory.mktemp("imported")
    config, keep, order = CASES[request.param]
    source = where / "source"
    source.mkdir()
    params = Transformer(config).init(jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    writing.write_checkpoint(source, config, params, positions=64, prefer=request.param, more={"eos_token_id": 256})
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate([*alphabet, "<eos>"])}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    exchange.import_model(source, where / "teacher")
    small = load_module(tiny).supervised()
    start = Truncated(str(where / "teacher"), keep)
    student = dataclasses.replace(
        small,
        data=dataclasses.replace(small.data, tokenizer=data.HuggingFace(str(where / "teacher" / "tokenizer"))),
        start=start,
        model=start.config(rundir.read_config(where / "teacher").model),
        teacher=Online(str(where / "teacher")),
        steps=4,
        checkpoint_every=0,
    )
    run(student, where / "student", quiet=True)
    return where, order


def test_every_size_is_scored_and_one_is_written_that_computes_the_same(case, tmp_path):
    where, order = case
    pair = Pair.of(where / "student")
    scorer = curve.Scorer(pair, quiet=True)
    rows = curve.curve(scorer, order)
    assert rows[0]["layers"] == len(pair.keep) and rows[-1]["layers"] == pair.num_layers
    assert rows[-1]["forward_kl"] < 1e-6 < rows[0]["forward_kl"]
    depth = rows[1]["layers"]
    subset = choose(pair, order, depth=depth)
    export.export(pair, subset, tmp_path / "out")
    opened = reading.open_checkpoint(tmp_path / "out")
    assert opened.config.num_layers == depth and opened.dtype == "bfloat16"
    exchange.import_model(tmp_path / "out", tmp_path / "again")
    assert rundir.read_config(tmp_path / "again").model.tied == pair.config(subset).tied
    found = _loss(tmp_path / "again", scorer)  # the student's numbers were rounded to bfloat16, the teacher's dtype
    assert found == pytest.approx(rows[1]["loss"], rel=2**-8)


def _loss(directory, scorer):
    """Of a run's parameters, on the windows of a scorer."""
    loaded = analysis.load_run(directory)
    model = dataclasses.replace(loaded.model, dtype=jnp.float32)
    sums = jax.jit(evals.make_sums(model))
    return evals.score(lambda batch: sums(loaded.params, None, batch), scorer.text.batches(8)).mean["loss"]


def test_a_model_of_billions_is_planned_without_holding_it():
    config = llama.llama3_8b()
    keep = patterns.every_nth(config.num_layers)
    abstract = jax.eval_shape(Transformer(config, jnp.bfloat16).init, jax.random.key(0))
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), abstract)
    _, part = truncate(config, whole, keep)

    def hidden(student, teacher, plan, tokens_BL):
        params = {"student": student, "teacher": teacher, "plan": plan}
        return Spliced(config, jnp.bfloat16).hidden(params, tokens_BL)[0]

    tokens_BL = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    compiled = jax.jit(hidden).lower(part, whole, plan(keep, config.num_layers, (3,)), tokens_BL).compile()
    layer = sum(x.size * 2 for x in jax.tree.leaves(whole["layers"])) / config.num_layers
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * layer  # of 32 and 17 that are there
