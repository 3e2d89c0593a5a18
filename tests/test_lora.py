"""Runs that train a part of their model: adapters and embeddings on a base that is the teacher's own, and subwords."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jaxdistill import analysis, data, dims, frozen, metrics, rundir
from jaxdistill.cli import main
from jaxdistill.errors import InputError
from jaxdistill.evaluate import Request, evaluate
from jaxdistill.experiment import Experiment, load_module
from jaxdistill.generating import texts
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Term
from jaxdistill.models import adapters, subwords
from jaxdistill.models.transformer import Config
from jaxdistill.optim import AdamW
from jaxdistill.program import build
from jaxdistill.run import run
from jaxdistill.start import LoRA, Transplanted, Truncated, divide
from jaxdistill.teacher import Online

PIECES = data.SentencePiece(290, characters=100_000)


@pytest.fixture(scope="module")
def source(tiny) -> Experiment:
    """A model of pieces of text."""
    plain = load_module(tiny).supervised()
    return dataclasses.replace(
        plain,
        model=Config(290, 2, 16, num_heads=2, head_size=8, mlp_width=24, base_width=16, vocab_multiple=1),
        data=dataclasses.replace(plain.data, tokenizer=PIECES, length=16, validation_windows=16),
        steps=8,
    )


@pytest.fixture(scope="module")
def root(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    run(source, root / "source", quiet=True)
    return root


def adapted(source) -> Experiment:
    """Self-distillation of the same model."""
    return dataclasses.replace(
        source,
        start=LoRA(Truncated(source, (0, 1)), rank=4, alpha=8.0, embeddings=False),
        teacher=Online(source),
        objective={"kl": Term(ForwardKL()), "ce": Term(CrossEntropy())},
        steps=4,
        log_every=1,
        checkpoint_every=2,
    )


def of_bytes(source) -> Experiment:
    """The model as one of bytes, which reads the old pieces too."""
    start = LoRA(Transplanted(source, untie=True, subwords=5), rank=4)
    return dataclasses.replace(
        source,
        model=start.of.config(source.model, 257),
        start=start,
        data=dataclasses.replace(source.data, tokenizer=data.Bytes(), length=32),
        steps=4,
        optim=AdamW(peak=1e-2, warmup=1, weight_decay=0.0),
        checkpoint_every=2,
    )


def leaves(tree):
    return {path: np.asarray(x) for path, _, x in dims.leaves(jax.device_get(tree))}


def test_self_distillation_holds_the_base_once_and_only_adapters_are_trained(source, root):
    student = adapted(source)
    tokenizer = data.prepare(student.data, None, True).tokenizer
    _, teacher = frozen.load(root / "source", "float32", tokenizer, student.mesh.build())
    whole = frozen.starting(root / "source", student.start, student, tokenizer)
    trained, untrained = divide(student.start, whole, jax.random.key(0))
    base = frozen.base_of(untrained, student, teacher)
    assert jax.tree.all(jax.tree.map(lambda own, its: own is its, base, teacher))
    assert all("R" in own for _, own, _ in dims.leaves(trained))


def test_a_run_of_adapters_begins_as_its_base_and_ends_as_a_plain_model(source, root):
    student = adapted(source)
    found = run(student, root / "adapted", quiet=True)
    rows = metrics.read(root / "adapted" / "metrics.jsonl")
    assert abs(next(row["kl"] for row in rows if "kl" in row)) < 1e-6  # the student is its teacher
    before, after = (leaves(analysis.load_run(root / name).params) for name in ("source", "adapted"))
    assert before.keys() == after.keys()  # the adapters are folded in
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {path for path in before if adapters.names(path.rpartition("/")[2])[0].partition("_a_")[0] in
                     adapters.ADAPTED and "norm" not in path}  # fmt: skip
    for path in moved:  # what was added has the rank of an adapter
        change = (after[path] - before[path]).reshape(2, 16, -1) if not path.endswith("D") else (
            after[path] - before[path]).reshape(2, -1, 16)  # fmt: skip
        values = np.linalg.svd(change, compute_uv=False)
        assert values[:, 0].min() > 1e-4 and values[:, 4:].max() < 1e-5 * values.max()
    D, H, J, K, F = 16, 2, 2, 8, 24
    assert found["N_trained"] == 2 * 4 * (2 * (D + H * K) + 2 * (D + J * K) + 3 * (D + F))
    state = build(student).abstract  # what its checkpoints hold: values, two moments each, and a count
    assert sum(x.size for x in jax.tree.leaves(state.params)) == found["N_trained"]
    assert sum(x.size for x in jax.tree.leaves(state.opt)) == 2 * found["N_trained"] + 1
    assert (root / "adapted" / "trained" / "4").is_dir()
    assert len(texts(root / "adapted", ["a"], 2, quiet=True)) == 1


def test_a_run_of_adapters_goes_on_from_its_last_checkpoint_to_the_same_end(source, root, tmp_path):
    for name in ("source", "adapted"):
        shutil.copytree(root / name, tmp_path / name)
    for lost in ("result.json", "checkpoints", "trained/4"):
        path = tmp_path / "adapted" / lost
        path.unlink() if path.is_file() else shutil.rmtree(path)
    run(adapted(source), tmp_path / "adapted", quiet=True)
    a, b = (leaves(analysis.load_run(where / "adapted").params) for where in (root, tmp_path))
    for path in a:
        np.testing.assert_array_equal(a[path], b[path])


def test_a_student_of_bytes_reads_the_old_pieces_which_stay_as_they_were(source, root):
    student = of_bytes(source)
    run(student, root / "bytes", quiet=True)
    loaded = analysis.load_run(root / "bytes")
    old = analysis.load_run(root / "source")
    table = subwords.table(old.tokenizer.token_bytes.of_id, old.params["embed_VD"], 5)
    for name, x in table.items():
        np.testing.assert_array_equal(loaded.params["subwords"][name], x)
    assert loaded.params["head_VD"].shape == loaded.params["embed_VD"].shape == (257, 16)
    assert not np.array_equal(loaded.params["head_VD"], loaded.params["embed_VD"])
    assert rundir.read_result(root / "bytes")["loss"] > 0
    with pytest.raises(InputError, match="needs its text whole"):
        texts(root / "bytes", ["a"], 2, quiet=True)


def test_runs_of_one_tokenizer_are_an_ensemble_and_others_are_not(source, root):
    teacher = Request(teacher=str(root / "source"))
    alone = evaluate(root / "adapted", teacher, quiet=True)["adapted"]["scores"]["validation"]
    twice = dataclasses.replace(teacher, others=(root / "adapted",))
    record = evaluate(root / "adapted", twice, quiet=True)["adapted"]
    assert record["ensemble"] == [str(root / "adapted")]
    for name in ("loss", "forward_kl", "bits_per_byte"):
        assert record["scores"]["validation"][name] == pytest.approx(alone[name], rel=1e-5)
    with pytest.raises(InputError, match="has another tokenizer than"):
        texts(root / "adapted", ["a"], 2, others=[root / "bytes"], quiet=True)
    command = ["generate", str(root / "adapted"), "a", "--tokens", "2", "--ensemble", str(root / "source"), "--quiet"]
    assert main(command) == 0


def test_what_does_not_fit_is_refused_in_words(source):
    with pytest.raises(InputError, match=r"start\.rank is 0"):
        LoRA(Truncated(source, (0, 1)), rank=0)
    with pytest.raises(InputError, match=r"start\.subwords is -1"):
        Transplanted(source, subwords=-1)
    with pytest.raises(InputError, match=r"model\.num_layers is 2, and 1 in what start takes"):
        dataclasses.replace(source, start=LoRA(Truncated(source, (0,))))
    with pytest.raises(InputError, match="let start be Transplanted"):
        dataclasses.replace(source, model=of_bytes(source).model)
    with pytest.raises(InputError, match="cannot be called 'base'"):
        Online(source, references={"base": source})
