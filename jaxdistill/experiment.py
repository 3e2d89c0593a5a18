"""Experiments: the configuration of one run, and the Python file that makes it.

An experiment is a module with `config()`, which returns an Experiment, and `sweep()` where there are several. The file
is what people copy and change.
"""

import dataclasses
import hashlib
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from jaxdistill.config import EXPERIMENT_MODULE
from jaxdistill.data import Tokens
from jaxdistill.errors import InputError
from jaxdistill.losses.combiners import Combiner
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.models.transformer import Config
from jaxdistill.optim import AdamW
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.parallel.placement import Disjoint
from jaxdistill.start import START, LoRA, Transplanted, Truncated
from jaxdistill.teacher import Across, Cached, Online


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run, complete: everything that decides its result is a field here.

    Attributes:
      model: shape of the student (of the model, where there is no teacher).
      data: the tokens and how they are cut into windows.
      objective: terms by name, whose weighted sum is minimised.
      steps, batch: optimizer steps, and sequences in each; the run sees steps * batch * data.length tokens.
      optim: optimizer and learning-rate schedule.
      teacher: where targets come from, or None for the data's own labels.
      start: where parameters come from, or None for random ones.
      controllers: numbers that follow the training, by name: terms that name one read its value at every step.
      combine: makes one gradient of those of the terms (`losses.combiners`); None for that of their weighted sum.
      seed: of initialisation and of the order of the data.
      dtype: of activations and matmuls; parameters, moments, logits and losses are fp32 in both.
      accumulate: micro-batches a batch is cut into.
      remat: recompute activations in the backward pass.
      mesh: arrangement of the devices.
      table: what each axis of the mesh splits, one of `parallel.rules.TABLES`; a teacher may have another one.
      log_every, evaluate_every, checkpoint_every: in steps; 0 means only at the end.
      protocol: a label for the table of runs, such as "isoflop 1e11".
    """

    model: Config
    data: Tokens
    objective: Mapping[str, Term]
    steps: int
    batch: int
    optim: AdamW = AdamW()
    teacher: Online | Across | Cached | None = None
    start: Truncated | Transplanted | LoRA | None = None
    controllers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    combine: Combiner | None = dataclasses.field(default=None, metadata={"later": True})
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1
    remat: bool = False
    mesh: Mesh = Mesh()
    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 0
    protocol: str = ""
    table: rules.Table = dataclasses.field(default="axes", metadata={"later": True})

    def __post_init__(self):
        for name in ("steps", "batch", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch % self.accumulate:
            raise InputError(f"batch ({self.batch}) must be a multiple of accumulate ({self.accumulate})")
        if not self.objective:
            raise InputError("objective has no terms; give it at least one, such as {'ce': Term(CrossEntropy())}")
        if taken := sorted(
            set(self.controllers) & {*self.objective, "loss", "tokens", "grad_norm", "steps", "combine"}
        ):
            raise InputError(f"a controller is called {taken[0]!r}, which a term or metric is already: rename it")
        for name, term in self.objective.items():
            if isinstance(term.coef, str) and term.coef not in self.controllers:
                raise InputError(
                    f"objective.{name} takes its coefficient from a controller {term.coef!r}, which is not among "
                    f"controllers ({', '.join(map(repr, self.controllers)) or 'none'})"
                )
        if isinstance(self.teacher, Cached) and (wanted := Objective.of(self.objective).layers()[1]):
            raise InputError(
                f"the objective looks at layer {wanted[0]} of the teacher, and a cache holds none: use teacher=Online"
            )
        kinds = Objective.of(self.objective).split()
        if self.placement is not None and (wanted := (*kinds.states.names, *kinds.places.names, *kinds.rows.names)):
            raise InputError(
                f"objective.{wanted[0]} looks at the teacher itself, of which only targets cross between devices: "
                "place it beside the student (teacher.placement=None)"
            )
        if self.model.design.subwords is not None and self.start is None:
            raise InputError("model.design.subwords are of another model: let start be Transplanted(..., subwords=...)")
        if self.start is not None and isinstance(self.start.run, Experiment):
            self.start.check(self.start.run.model, self.model)
        for table in (self.table, self.teacher_table):
            rules.named(table)
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype is {self.dtype!r}; it is 'float32' or 'bfloat16'")

    @property
    def sources(self) -> dict[str, Any]:
        """What has to be run before, by role: frozen models or a cache, each described or a finished directory."""
        teachers = {} if self.teacher is None else self.teacher.sources(self)
        return teachers if self.start is None else teachers | {START: self.start.run}

    @property
    def teacher_table(self) -> str:
        """The table of the teacher's arrays, on its mesh."""
        return getattr(self.teacher, "table", None) or self.table

    @property
    def placement(self) -> Disjoint | None:
        """Devices that are the teacher's own; None where it has none."""
        return self.teacher.placement if isinstance(self.teacher, Online | Across) else None

    @property
    def quantised(self) -> str | None:
        """What the teacher's layers are stored in; None for the compute dtype."""
        return self.teacher.quantised if isinstance(self.teacher, Online | Across) else None

    def meshes(self, devices: Sequence[jax.Device] | None = None) -> tuple[jax.sharding.Mesh, jax.sharding.Mesh]:
        """The student's mesh and the teacher's over these devices (default: all of the job); one, unless it is apart.

        Raises InputError where the devices cannot be shared out so.
        """
        devices = list(jax.devices() if devices is None else devices)
        if self.placement is None:
            return (mesh := self.mesh.build(devices)), mesh
        of_student, of_teacher = self.placement.split(devices)
        return self.mesh.build(of_student), self.placement.mesh.build(of_teacher)

    @property
    def tokens(self) -> int:
        """Tokens seen in training: the D of the scaling laws."""
        return self.steps * self.batch * self.data.length


def load_module(path: str | Path) -> types.ModuleType:
    """An experiment file as a module, loaded once for its content."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no experiment file {path}")
    name = f"{EXPERIMENT_MODULE}_{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.machinery.ModuleSpec(name, loader, origin=str(path))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"the experiment file {path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def load_function(path: str | Path, name: str) -> Callable:
    """The function `name` of an experiment file; InputError where there is none."""
    if not callable(function := getattr(load_module(path), name, None)):
        raise InputError(
            f"{path} has no {name}(); a file has config() and, where there are many runs, sweep() and report()"
        )
    return function


def has(path: str | Path, name: str) -> bool:
    """Whether an experiment file has a function of this name."""
    return callable(getattr(load_module(path), name, None))


def call(path: str | Path, name: str, **arguments: Any) -> Any:
    """The function `name` of an experiment file, called with the arguments that are not None."""
    function = load_function(path, name)
    given = {key: value for key, value in arguments.items() if value is not None}
    for key in given:
        if key not in inspect.signature(function).parameters:
            raise InputError(f"{path}: its {name}() takes no {key!r}")
    return function(**given)
