"""Models imported as run directories and runs exported: foreign teachers teach, and nothing is left half-done."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdistill import analysis, caching, cli, data, exchange, rundir
from jaxdistill import run as runner
from jaxdistill.errors import InputError
from jaxdistill.losses import methods
from jaxdistill.models.design import AttentionDesign, Window
from jaxdistill.models.families import llama
from jaxdistill.models.huggingface import reading, writing
from jaxdistill.models.transformer import Transformer
from jaxdistill.teacher import Cached, Draws, Online

tokenizers = pytest.importorskip("tokenizers")

CONFIG = llama.llama(300, 2, 16, 4, 2, 20, attention=AttentionDesign(window=Window(9)))  # Mistral, with unused rows
EOS = "<eos>"


def save_tokenizer(directory, eos=EOS):
    """A tokenizer of bytes and an end of document: 257 tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, EOS])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Mistral of random bfloat16 numbers with its tokenizer, as it would be downloaded."""
    directory = tmp_path_factory.mktemp("hub") / "tiny-mistral"
    directory.mkdir()
    rng, shapes = np.random.default_rng(0), jax.eval_shape(Transformer(CONFIG).init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.bfloat16), shapes)
    writing.write_checkpoint(directory, CONFIG, params, positions=64, prefer="mistral", more={"eos_token_id": 256})
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    """The directory that an import makes of it."""
    out = tmp_path_factory.mktemp("imported") / "mistral"
    exchange.import_model(source, out)
    return out


def logits(model, params, tokens_BL):
    return jax.jit(lambda p: model.head(p, model.hidden(p, tokens_BL)[0]).logits())(params)[..., :257]


def test_an_imported_model_is_read_as_a_run_and_computes_what_it_did(source, imported):
    run, opened = analysis.load_run(imported), reading.open_checkpoint(source)
    assert run.model.dtype == jnp.bfloat16
    tokens_BL = jnp.arange(32).reshape(2, 16) * 7 % 257
    direct = logits(Transformer(opened.config), reading.read_params(opened, dtype=jnp.float32), tokens_BL)
    exact = dataclasses.replace(run.model, dtype=jnp.float32)  # it comes in the dtype of its checkpoint
    np.testing.assert_array_equal(logits(exact, run.params, tokens_BL), direct)
    assert run.experiment.model.vocab_size == run.tokenizer.vocab_size == 257  # the tokenizer's, not the 300 rows
    assert (run.experiment.family, run.experiment.dtype, run.experiment.positions) == ("mistral", "bfloat16", 64)
    assert run.tokenizer.fingerprint == run.result["tokenizer"]


def test_its_configuration_says_which_weights_it_has(source, imported, tmp_path):
    text = (imported / rundir.CONFIG).read_text()
    same, other = tmp_path / "same", tmp_path / "other"
    exchange.import_model(source, same)
    assert (same / rundir.CONFIG).read_text() == text
    changed = tmp_path / "changed"
    changed.mkdir()
    opened = reading.open_checkpoint(source)
    params = reading.read_params(opened) | {"norm_D": np.ones(16, np.float32)}
    writing.write_checkpoint(
        changed, CONFIG, jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params), positions=64
    )
    save_tokenizer(changed)
    assert exchange.import_model(changed, other).weights != exchange.import_model(source, tmp_path / "third").weights


def test_it_teaches_a_student_that_uses_its_tokenizer(imported, distilled, tmp_path):
    tokens = dataclasses.replace(distilled.data, tokenizer=data.HuggingFace(str(imported / "tokenizer")))
    student = dataclasses.replace(distilled, data=tokens, teacher=Online(str(imported)), steps=4, checkpoint_every=0)
    result = runner.run(student, tmp_path / "student", quiet=True)
    assert np.isfinite(result["loss"]) and result["validation"]["forward_kl"] > 0
    assert result["teacher"] == "mistral" and result["N_T"] == CONFIG.num_params and result["L_T"] is None
    with pytest.raises(InputError, match="was trained with another tokenizer"):
        runner.run(dataclasses.replace(student, data=distilled.data), tmp_path / "bytes", quiet=True)


def test_what_it_says_is_cached_and_taught_from_disk(imported, distilled, tmp_path):
    shutil.copytree(imported, tmp_path / "mistral")  # beside the runs, where a table of them is made
    tokens = dataclasses.replace(distilled.data, tokenizer=data.HuggingFace(str(imported / "tokenizer")))
    teacher = Cached(str(tmp_path / "mistral"), Draws(8))
    student = dataclasses.replace(
        distilled, data=tokens, teacher=teacher, objective=methods.random_sampling_kd(), steps=4, checkpoint_every=0
    )
    caching.build(student.sources["cache"], tmp_path / "cache", quiet=True)
    assert caching.verify(tmp_path / "cache", quiet=True)["overlap"] > 0.98
    result = runner.run(student, tmp_path / "student", quiet=True)
    assert result["teacher"] == "mistral" and result["validation"]["forward_kl"] > 0
    assert [row["run"] for row in analysis.rows(tmp_path)] == ["student"]
    assert cli.main(["cache", "info", str(tmp_path / "cache")]) == 0
    assert cli.main(["run", str(tmp_path / "mistral")]) == 2


def test_what_was_imported_is_exported_as_it_came(source, imported, tmp_path):
    assert exchange.export_model(imported, tmp_path / "out") == "MistralForCausalLM"
    before, after = (load_file(d / "model.safetensors") for d in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(
            after[name].view(np.uint16),
            tensor[:257].view(np.uint16) if "embed" in name or "lm_head" in name else tensor.view(np.uint16),
        )
    attributes, original = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "out", source))
    assert attributes == original | {"vocab_size": 257}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_a_run_is_exported_with_its_logits(supervised, imported, tmp_path):
    tokens = dataclasses.replace(supervised.data, tokenizer=data.HuggingFace(str(imported / "tokenizer")))
    runner.run(dataclasses.replace(supervised, data=tokens, steps=2, checkpoint_every=0), tmp_path / "run", quiet=True)
    assert exchange.export_model(tmp_path / "run", tmp_path / "out") == "Qwen3ForCausalLM"
    run, opened = analysis.load_run(tmp_path / "run"), reading.open_checkpoint(tmp_path / "out")
    tokens_BL = jnp.arange(32).reshape(2, 16) * 7 % 257
    ours = logits(run.model, run.params, tokens_BL)
    theirs = logits(Transformer(opened.config), reading.read_params(opened), tokens_BL)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2 * np.sqrt(32) * 2.0**-24 * np.abs(ours).max() * 4)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == EOS
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 256
    assert opened.positions == 32


def test_a_run_that_no_architecture_computes_is_refused_and_nothing_written(supervised, tmp_path):
    capped = dataclasses.replace(supervised, model=dataclasses.replace(supervised.model, softcap=3.0))
    rundir.prepare(tmp_path / "run", capped)
    with pytest.raises(InputError, match=r"^no architecture of transformers computes this model: .* another softcap$"):
        exchange.export_model(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def break_(source, directory, change):
    """A copy of the source with something wrong."""
    directory.mkdir()
    for file in source.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    change(directory)
    return directory


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json, without which nobody can use the model"),
        (lambda d: (d / "tokenizer_config.json").unlink(), "names no eos_token: name the token that ends a document"),
        (lambda d: save_tokenizer(d, "<end>"), "the tokenizer has no token '<end>' to end a document with"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "this is not a tokenizer.json"),
        (lambda d: (d / "model.safetensors").write_bytes(b"0" * 99), "is damaged or cut short"),
        (lambda d: (d / "config.json").unlink(), "cannot read .*config.json"),
    ],
)
def test_a_source_that_is_not_whole_is_refused_and_nothing_written(source, tmp_path, change, message):
    broken = break_(source, tmp_path / "broken", change)
    with pytest.raises(InputError, match=message):
        exchange.import_model(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    small = dataclasses.replace(CONFIG, vocab_size=200)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(Transformer(small).init, jax.random.key(0)))
    (tmp_path / "source").mkdir()
    writing.write_checkpoint(tmp_path / "source", small, params, positions=64)
    save_tokenizer(tmp_path / "source")
    with pytest.raises(InputError, match="the tokenizer has 257 tokens and the embedding 200 rows: they do not belong"):
        exchange.import_model(tmp_path / "source", tmp_path / "out")


def test_a_failure_in_the_middle_leaves_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "_result", lambda *args: 1 / 0)  # after the parameters are on disk
    with pytest.raises(ZeroDivisionError):
        exchange.import_model(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange.shutil, "disk_usage", lambda path: exchange.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match=r"^no space left for .*out: it takes 0\.0 GB and 0\.0 GB are free$"):
        exchange.import_model(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_verbs_import_and_export_and_overwrite_nothing(source, tmp_path, capsys):
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    assert cli.main(["import", str(source), "--out", run]) == 0
    assert cli.main(["export", run, out]) == 0
    assert f"MistralForCausalLM: {out}" in capsys.readouterr().out
    for command in (["import", str(source), "--out", run], ["export", run, out]):
        assert cli.main(command) == 2
        assert capsys.readouterr().err.endswith("exists; choose another directory, or delete it\n")
    assert cli.main(["export", str(tmp_path), str(tmp_path / "more")]) == 2
    assert "is not a run directory: it has no config.txt" in capsys.readouterr().err
