"""Models from elsewhere and for elsewhere: a Hugging Face directory as a run directory, and a run as such a directory.

An imported model is what a finished run is, without the training: config.txt, tokenizer/, checkpoints/ and result.json.
So whatever takes a finished run takes it too: `Online(run="imported/name")`, `load_run("imported/name")`.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxdistill import analysis, checkpoint, rundir
from jaxdistill import config as configs
from jaxdistill.data.round_trip import known_change
from jaxdistill.data.tokenizers import CARD, HUGGINGFACE_MODEL, Tokenizer, load_tokenizer
from jaxdistill.data.vocabularies import HuggingFace
from jaxdistill.errors import InputError
from jaxdistill.models.huggingface import reading, writing
from jaxdistill.models.transformer import Config
from jaxdistill.models.variant import Variant

TOKENIZER_FILES = (
    HUGGINGFACE_MODEL, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class ElsewhereText:
    """The text that an imported model was trained on, of which only the tokenizer is known."""

    tokenizer: HuggingFace


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model that somebody else has trained: what stands in the config.txt of its directory.

    Attributes:
      model: its shape.
      family: its `model_type`, which an export writes again.
      weights: 16 hex digits of the SHA-256 of its safetensors files, so that the identity is that of the numbers too.
      positions: the longest context it is made for; None where its config.json does not say.
      data: its tokenizer.
      tokens: ids of special tokens by their name in its config.json.
      dtype: of the stored parameters, and of the activations where nothing else is said.
      remat: as in an Experiment.
    """

    model: Variant
    family: str
    weights: str
    positions: int | None
    data: ElsewhereText
    tokens: dict[str, int]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    remat: bool = False


def import_model(source: str | Path, out: str | Path, *, eos: str | None = None) -> Imported:
    """Make the directory `out` of a Hugging Face directory.

    Args:
      source: with config.json, safetensors and a tokenizer.json.
      out: must not exist; it is there whole or not at all.
      eos: the token that ends a document; None for the tokenizer's own `eos_token`.

    Raises:
      InputError: anything in the source that is missing, damaged or not understood, or a tokenizer that does not fit
        or whose tokens have no bytes of their own.
    """
    source, out = Path(source), Path(out)
    recipe = HuggingFace(str(source), eos)
    opened = reading.open_checkpoint(source)
    tokenizer = _tokenizer(source, recipe)
    change = known_change(tokenizer)
    opened = opened.with_vocab_size(tokenizer.vocab_size)
    values = json.loads((source / "config.json").read_bytes())
    imported = Imported(
        model=opened.config,
        family=opened.family.model_type,
        weights=_digest(sorted({tensor.file for tensor in opened.tensors.values()})),
        positions=opened.positions,
        data=ElsewhereText(HuggingFace(HUGGINGFACE_MODEL, eos)),
        tokens={name: values[name] for name in TOKENS if isinstance(values.get(name), int)},
        dtype=opened.dtype.name,
    )
    _check_space(source, out)
    with _whole(out) as partial:
        _store(opened, partial / "checkpoints")
        tokenizer.save(partial / "tokenizer")
        _copy_tokenizer(source, partial / "tokenizer")
        (partial / rundir.CONFIG).write_text(configs.text(imported))
        rundir.write_json(partial / "env.json", rundir.environment())
        rundir.write_json(partial / rundir.RESULT, _result(imported, tokenizer) | {"tokenizer_changes": change})
    return imported


def _digest(files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def _tokenizer(source: Path, recipe: HuggingFace) -> Tokenizer:
    if not (source / HUGGINGFACE_MODEL).is_file():
        raise InputError(f"{source} has no {HUGGINGFACE_MODEL}, without which nobody can use the model: save it there")
    return recipe.build(None, "")  # ty: ignore[invalid-argument-type]  # a ready tokenizer needs no text


def _store(opened: reading.Source, directory: Path) -> None:
    """The parameters as the checkpoint of step 0, from host memory, which they pass through once.

    Without OCDBT, Orbax writes every chunk to a file of its own at once, where it would gather gigabytes of them first.
    """
    saving = ocp.options.ArrayOptions.Saving
    chunks = saving.StorageOptions(chunk_byte_size=checkpoint.CHUNK_BYTES)
    context = ocp.Context(
        array_options=ocp.options.ArrayOptions(saving=saving(storage_options=chunks, use_ocdbt=False)),
        memory_options=ocp.options.MemoryOptions(deepcopy_host_arrays=False),
    )
    params = reading.read_params(opened)
    with context:
        ocp.save_checkpointables(str((directory / "0").absolute()), {"state": {"params": params}})


def _check_space(source: Path, out: Path) -> None:
    """Refuse before anything is written: the writers' own answer to a full disk is late and long."""
    needed = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    free = shutil.disk_usage(next(parent for parent in out.absolute().parents if parent.is_dir())).free
    if free < needed:
        raise InputError(f"no space left for {out}: it takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")


def _result(imported: Imported, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a student's result asks of its teacher's; how the model was trained is not known."""
    return {
        "identity": configs.identity(imported),
        "tokenizer": tokenizer.fingerprint,
        "N": imported.model.num_params,
        "N_total": imported.model.num_params_total,
        "D": None,
        "loss": None,
        "validation": {},
    }


def export_model(run: str | Path, out: str | Path, *, shard_bytes: int = writing.SHARD_BYTES) -> str:
    """Write a run as a directory that `transformers` loads, and give the architecture that it is of.

    A factor on the logits goes into the last norm. Parameters keep the dtype they are stored in.

    Args:
      run: the directory of a run or of an imported model.
      out: must not exist; it is there whole or not at all.
      shard_bytes: most bytes of a file.

    Raises:
      InputError: no run there, or a model that no architecture of transformers computes.
    """
    run = Path(run)
    experiment = rundir.read_config(run)
    check_exportable(experiment.model, run)  # refuse before anything is loaded
    return write_model(
        out, experiment.model, analysis.stored_params(run, stored_dtype(run)), run, shard_bytes=shard_bytes
    )


def stored_dtype(run: Path) -> str:
    """The dtype that the parameters of a run are stored in."""
    experiment = rundir.read_config(run)
    return experiment.dtype if isinstance(experiment, Imported) else "float32"


def check_exportable(config: Config, like: Path) -> None:
    """InputError where no architecture of transformers computes a model of this shape."""
    experiment = rundir.read_config(like)
    plain, _ = writing.with_plain_logits(config, {"norm_D": jnp.ones(())})
    writing.find_family(plain, experiment.family if isinstance(experiment, Imported) else None)


def write_model(
    out: str | Path, config: Config, params: Any, like: Path, *, shard_bytes: int = writing.SHARD_BYTES
) -> str:
    """As `export_model`, of any parameters; tokenizer, context and family are those of the directory `like`."""
    experiment = rundir.read_config(like)
    imported = isinstance(experiment, Imported)
    with _whole(Path(out)) as partial:
        family = writing.write_checkpoint(
            partial,
            config,
            params,
            positions=experiment.positions if imported else experiment.data.length,
            prefer=experiment.family if imported else None,
            more=experiment.tokens if imported else {"eos_token_id": load_tokenizer(like / "tokenizer").eos_id},
            shard_bytes=shard_bytes,
        )
        _copy_tokenizer(like / "tokenizer", partial)
    return family.architecture


def _copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files as transformers knows them; one that was trained here also gets the name of its eos."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    card = json.loads((source / CARD).read_bytes()) if (source / CARD).is_file() else {}
    if "eos" in card and not (target / "tokenizer_config.json").exists():
        content = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": card["eos"]}
        (target / "tokenizer_config.json").write_text(json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def _whole(out: Path) -> Generator[Path]:
    """A directory beside `out` that takes its name at the end, and leaves nothing where that is not reached."""
    if out.exists():
        raise InputError(f"{out} exists; choose another directory, or delete it")
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a command that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
