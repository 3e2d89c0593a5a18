"""What a run needs that was made before it: finished runs and caches beside it, and models loaded from them."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill import checkpoint, dims, rundir
from jaxdistill import config as configs
from jaxdistill.across import Chunking, Marks
from jaxdistill.align import Spelling, nearest, same
from jaxdistill.cache.reader import Cache
from jaxdistill.data import Dataset, Tokens, load_tokenizer, pairs, progress
from jaxdistill.data.tokenizers import Tokenizer
from jaxdistill.errors import InputError
from jaxdistill.experiment import Experiment
from jaxdistill.head import Head
from jaxdistill.models import adapters
from jaxdistill.models.surgery.truncate import truncate_tree
from jaxdistill.models.transformer import Transformer
from jaxdistill.parallel import rules
from jaxdistill.program import Program, make_model
from jaxdistill.start import LoRA, Start, Transplanted, Truncated, divide
from jaxdistill.step import State
from jaxdistill.teacher import TEACHER, Across, Cached


def find(sources: Any, directory: Path) -> dict[str, Path]:
    """The finished directory of every source by its role; those that are described, not named, lie beside `directory`.

    Args:
      sources: by role, a path or the configuration that is run for it: `Experiment.sources` or `Recipe.sources`.
      directory: of the run that needs them.

    Raises:
      InputError: one is missing, or is not finished.
    """
    return {role: _find(source, role, Path(directory)) for role, source in sources.items()}


def _find(source: Any, role: str, directory: Path) -> Path:
    if isinstance(source, (str, Path)):
        rundir.read_result(Path(source))  # refuses what is not finished
        return Path(source)
    text = configs.text(source)
    for path in sorted(directory.absolute().parent.glob(f"*/{rundir.CONFIG}")):
        if path.read_text() == text and rundir.is_finished(path.parent):
            return path.parent
    raise InputError(f"the {role} (identity {configs.identity(source)}) has no finished run beside {directory}")


def load(
    directory: Path,
    dtype: str,
    tokenizer: Tokenizer | None,
    mesh: jax.sharding.Mesh,
    table: rules.Rules = rules.DEFAULT,
) -> tuple[Transformer, Any]:
    """The model of a finished run and its parameters, frozen: in the compute dtype and on the mesh, by a table.

    Raises InputError where it was trained with another tokenizer than this one; None is for models of any.
    """
    experiment, result = rundir.read_config(directory), rundir.read_result(directory)
    if tokenizer is not None and result["tokenizer"] != tokenizer.fingerprint:
        raise InputError(
            f"{directory} was trained with another tokenizer ({experiment.data.tokenizer}); "
            "what it has learnt says nothing about the tokens of this run"
        )
    model = dataclasses.replace(make_model(experiment), dtype=jnp.dtype(dtype), remat=False)
    checkpoints = directory / "checkpoints"
    return model, checkpoint.load_params(checkpoints, checkpoint.steps(checkpoints)[-1], abstract(model, mesh, table))


def abstract(model: Transformer, mesh: jax.sharding.Mesh, table: rules.Rules = rules.DEFAULT) -> Any:
    """The parameters of a frozen model as shapes: in its compute dtype, and each in its place on the mesh."""
    whole = jax.eval_shape(model.init, jax.random.key(0))
    narrow = checkpoint.in_dtype(whole, model.dtype)
    return checkpoint.abstract_like(narrow, rules.shardings(whole, mesh, table))


def starting(directory: Path, start: Start, experiment: Experiment, tokenizer: Tokenizer) -> dict[str, Any]:
    """All parameters that an experiment starts with, fp32: those of a finished run in the shape of its own model.

    Raises InputError where that run is of another shape or, unless it is transplanted, of another tokenizer.
    """
    (mesh, _), table = experiment.meshes(), rules.named(experiment.table)
    kind = start.of if isinstance(start, LoRA) else start
    transplanted = isinstance(kind, Transplanted)
    model, whole = load(directory, "float32", None if transplanted else tokenizer, mesh, table)
    kind.check(model.config, experiment.model)
    if not transplanted:
        return truncate_tree(whole, kind.keep, model.config.num_layers)
    return kind.params(model.config, whole, load_tokenizer(directory / "tokenizer"), tokenizer)


def begin(directory: Path, start: Start, experiment: Experiment, program: Program, trained: dict[str, Any]) -> State:
    """The state before the first step of an experiment that starts from a finished run, with its trained parameters.

    Raises InputError where moments are asked for and that run has none for this optimizer.
    """
    state = program.begin(trained)
    if not (isinstance(start, Truncated) and start.moments):
        return state
    source = rundir.read_config(directory)
    if not isinstance(source, Experiment) or type(source.optim) is not type(experiment.optim):
        raise InputError(f"start.moments is set, and {directory} has none of such an optimizer: unset it")
    whole = jax.eval_shape(make_model(source).init, jax.random.key(0))
    abstract = jax.eval_shape(experiment.optim.transform().init, whole)
    table = rules.named(experiment.table)
    on_mesh = checkpoint.abstract_like(abstract, rules.shardings(abstract, experiment.meshes()[0], table))
    checkpoints = directory / "checkpoints"
    moments = checkpoint.load_parts(checkpoints, checkpoint.steps(checkpoints)[-1], {"opt": on_mesh})["opt"]
    return dataclasses.replace(state, opt=truncate_tree(moments, start.keep, source.model.num_layers))


def base_of(untrained: dict[str, Any], experiment: Experiment, teacher: Any = None) -> dict[str, Any]:
    """The untrained parameters as a step takes them: in its dtype, on its mesh, the teacher's where they equal."""
    dtype = jnp.dtype(experiment.dtype)
    cast = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, untrained)
    layout = experiment.meshes()[0], rules.named(experiment.table)
    placed = jax.device_put(cast, rules.shardings(cast, *layout))
    return placed if teacher is None else shared(placed, teacher)


def write_whole(directory: Path, source: Path, experiment: Experiment, tokenizer: Tokenizer, trained: Any) -> None:
    """Leave the model of a run that trained a part of it as any other run leaves its own: the last of its checkpoints.

    The parameters that were not trained are read again, for a step had them in its compute dtype.
    """
    start, key = experiment.start, jax.random.key(experiment.seed)
    assert start is not None
    _, base = divide(start, starting(source, start, experiment, tokenizer), key)
    whole = adapters.fold(adapters.join(trained, base), start.scale if isinstance(start, LoRA) else 1.0)
    checkpoint.save_params(directory / "checkpoints", experiment.steps, whole)


def shared(params: dict[str, Any], other: Any) -> dict[str, Any]:
    """The same parameters, in the arrays of another model where those are equal: what two models hold is held once."""
    arrays = {path: x for path, _, x in dims.leaves(other)}

    def choose(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        twin = arrays.get("/".join(dims.key_name(key) for key in path))
        alike = twin is not None and (twin.shape, twin.dtype, twin.sharding) == (x.shape, x.dtype, x.sharding)
        return twin if alike and bool(jnp.array_equal(twin, x)) else x

    return jax.tree_util.tree_map_with_path(choose, params)


def beside(
    directory: Path, teacher: Across, tokens: Tokens, dataset: Dataset, cache: Path | None, quiet: bool
) -> tuple[Dataset, tuple[Marks, Marks]]:
    """The dataset with the text in the tokens of the run in `directory` too, and what the ids of the two are.

    Only training looks at the teacher's tokens: validation stays as it is.

    Raises InputError where the tokenizers do not keep the bytes of the text.
    """
    other = load_tokenizer(directory / "tokenizer")
    paired = pairs.pair(tokens, dataset, other, teacher.length, teacher.chunking.at, cache, quiet)
    tables = [(tokenizer.token_bytes.of_id, {"eos": tokenizer.eos_id}) for tokenizer in (dataset.tokenizer, other)]
    student = dataclasses.replace(marks_of(dataset.tokenizer), match_V=_match(tables, teacher.match, quiet))
    return dataclasses.replace(paired, held_out=dataset.held_out), (marks_of(other), student)


def marks_of(tokenizer: Tokenizer) -> Marks:
    """What a tokenizer's ids are; InputError where they have no bytes of their own."""
    return Marks.of(Spelling.of(tokenizer.token_bytes.of_id, {"eos": tokenizer.eos_id}))


def _match(tables: Any, match: str | None, quiet: bool) -> Any:
    """The teacher's id for each of the student's, of whose tables of bytes and roles the student's is the first."""
    if match is None:
        return None
    (own, own_roles), (other, other_roles) = tables
    if match == "same":
        return same(own, own_roles, other, other_roles)
    with progress.counting("matching tokens", len(own), "tokens", quiet) as advance:
        return nearest(own, own_roles, other, other_roles, advance)


def teacher_of(cache: Path) -> Path:
    """The run of the teacher that a cache was made by; InputError where it is gone."""
    return find(rundir.read_config(cache).sources, cache)[TEACHER]


def output_layer(directory: Path, dtype: str, mesh: jax.sharding.Mesh, table: rules.Rules = rules.DEFAULT) -> Head:
    """The output layer of a finished run, without hidden states; nothing else of the model is read."""
    model = make_model(rundir.read_config(directory))
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    needed = {name: abstract[name] for name in ("embed_VD" if model.config.tied else "head_VD",)}
    narrow = checkpoint.in_dtype(needed, dtype)
    on_mesh = checkpoint.abstract_like(narrow, rules.shardings(needed, mesh, table))
    checkpoints = directory / "checkpoints"
    no_states: Any = None
    return model.head(checkpoint.load_params(checkpoints, checkpoint.steps(checkpoints)[-1], on_mesh), no_states)


def facts(directory: Path) -> dict[str, Any]:
    """What a student's result says of its teacher: its name, size, tokens and loss."""
    result = rundir.read_result(directory)
    return {"teacher": directory.name, "N_T": result["N"], "D_T": result["D"], "L_T": result["loss"]}


def open_cache(directory: Path, teacher: Cached, experiment: Experiment, dataset: Dataset) -> Cache:
    """The finished cache that a student reads its targets from, with the student held against it.

    `teacher` is the one of the experiment.

    Raises InputError naming what differs: the tokenizer, the windows, the chunking, or a teacher that was trained anew.
    """
    manifest = rundir.read_result(directory)
    cache = Cache.open(directory, manifest, teacher.first)
    if manifest["tokenizer"] != dataset.tokenizer.fingerprint:
        raise InputError(
            f"the cache {directory} was made with another tokenizer ({manifest['about']}); its ids say nothing about "
            "this student's tokens"
        )
    if isinstance(teacher.keep, Chunking):
        _check_chunking(directory, manifest["keep"], teacher.keep)
    if isinstance(teacher.run, (str, Path)) and rundir.is_finished(Path(teacher.run)):
        now = rundir.read_result(Path(teacher.run))
        if now["identity"] not in (manifest["identity"], manifest["teacher"]["identity"]):
            raise InputError(
                f"the cache {directory} was made by teacher {manifest['teacher']['identity']}, and {teacher.run} is "
                f"{now['identity']} now: build another cache"
            )
    for step in (0, experiment.steps - 1):  # what a student would stumble upon is said before it starts
        cache.attach(dataset.batch(experiment.batch, experiment.seed, step))
    return cache


def _check_chunking(directory: Path, held: dict[str, str], asked: Chunking) -> None:
    """InputError where a student names a chunking and the cache has another one, or none."""
    for name, wanted in configs.fields(asked, "keep."):
        if held.get(name) != wanted:
            raise InputError(
                f"the cache {directory} was built with {name} = {held.get(name, 'nothing of the kind')}, and the "
                f"experiment asks for {wanted}: ask for what it holds, or build another cache"
            )


def fingerprint(params: Any) -> str:
    """A digest of the parameters, 16 hex digits, whatever devices they are spread over and without gathering them.

    Every number is mixed with its place and the results are summed: integer sums do not depend on their order.
    """
    digest = hashlib.sha256()
    for path, _, leaf in dims.leaves(params):
        digest.update(f"{path} {leaf.shape} {leaf.dtype} {[int(x) for x in _mixed_sums(leaf)]}\n".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _mixed_sums(x: jax.Array) -> tuple[jax.Array, ...]:
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for dim in reversed(range(x.ndim)):
        place, stride = (
            place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim) * stride,
            stride * x.shape[dim] % 2**32,
        )
    return tuple(jnp.sum(_mix(bits ^ _mix(place + jnp.uint32(salt))), dtype=jnp.uint32) for salt in (1, 0x9E3779B9))


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: every bit of the input reaches every bit of the output."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
