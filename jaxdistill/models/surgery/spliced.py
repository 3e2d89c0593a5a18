"""A student and its teacher as one decoder whose layers are named by its parameters: every patched model, one program.

    spliced = Spliced(teacher.config, ...)
    params  = parts(student_params, teacher_params, keep, num_layers, subset)
    head    = spliced.head(params, spliced.hidden(params, tokens_BL)[0])

`patch` makes a model of its own, with a copy of every layer. Here no layer is copied or joined, and the plan is data:
what is compiled for one subset runs for all, so a curve over all sizes costs one compilation and the memory of two
models. For looking at models, not for training them.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.models.attention import causal_mask
from jaxdistill.models.surgery.layers import pieces
from jaxdistill.models.transformer import Params, Transformer, local_layers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Which layer comes at each depth; what lies behind `depth` is not read.

    Attributes:
      of_teacher: bool [N], whose it is.
      layer: int32 [N], its number there.
      origin: int32 [N], the layer of the teacher that it is or began as.
      depth: int32, how many there are.
    """

    of_teacher: np.ndarray | Array
    layer: np.ndarray | Array
    origin: np.ndarray | Array
    depth: np.ndarray | Array


def plan(keep: Sequence[int], num_layers: int, subset: Collection[int]) -> Plan:
    """The plan of `patch`: a student of the layers `keep` of a teacher's `num_layers`, with `subset` replaced."""
    layers = [(piece.of_teacher, n) for piece in pieces(keep, num_layers, subset) for n in piece.layers]
    origin = [n if of_teacher else keep[n] for of_teacher, n in layers]
    return _padded([whose for whose, _ in layers], [n for _, n in layers], origin, num_layers)


def plan_of_teacher(layers: Sequence[int], num_layers: int) -> Plan:
    """These layers of the teacher and nothing of a student: naive pruning."""
    return _padded([True] * len(layers), layers, layers, num_layers)


def _padded(of_teacher: Sequence[bool], layer: Sequence[int], origin: Sequence[int], num_layers: int) -> Plan:
    behind = (0, num_layers - len(layer))
    columns = (np.array(of_teacher), np.array(layer, np.int32), np.array(origin, np.int32))
    return Plan(*(np.pad(column, behind) for column in columns), np.array(len(layer), np.int32))


@dataclasses.dataclass(frozen=True)
class Spliced(Transformer):
    """The decoder; `config` is the teacher's. Parameters are {"student", "teacher", "plan"}."""

    def hidden(
        self,
        params: Params,
        tokens_BL: Array,
        segment_BL: Array | None = None,
        position_BL: Array | None = None,
        *,
        keep: Sequence[int] = (),
    ) -> tuple[Array, dict[int, Array]]:
        """As `Transformer.hidden`; no states of layers are kept."""
        if keep:
            raise InputError("the states inside a spliced model are not kept: patch it, and look at that")
        B, L = tokens_BL.shape
        if position_BL is None:
            position_BL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), (B, L))
        self._check_length(L)
        views = self._views(position_BL, functools.partial(causal_mask, segment_BL, L))
        is_local, plan = local_layers(self.config), jax.tree.map(jnp.asarray, params["plan"])

        def block(depth, x_BLD):
            local = None if is_local is None else jnp.asarray(is_local)[plan.origin[depth]]

            def run(own):
                pick = functools.partial(jax.lax.dynamic_index_in_dim, index=plan.layer[depth], keepdims=False)
                return self._layer(views, x_BLD, jax.tree.map(pick, own["layers"]), local, keep=())[0]

            return _of(params, plan.of_teacher[depth], run)

        x_BLD = _of(params, plan.of_teacher[0], lambda own: self._embed(own, tokens_BL, position_BL))
        x_BLD = jax.lax.fori_loop(0, plan.depth, block, x_BLD)
        return _of(params, _last_of_teacher(plan), lambda own: self._last_norm(own, x_BLD)), {}

    def head(self, params: Params, h_BLD: Array) -> Head:
        """As `Transformer.head`, of whoever supplies the last layer."""
        name = "embed_VD" if self.config.tied else "head_VD"
        own = _of(params, _last_of_teacher(params["plan"]), lambda own: own[name].astype(h_BLD.dtype))
        return super().head({name: own}, h_BLD)


def _last_of_teacher(plan: Plan) -> Array:
    return jnp.asarray(plan.of_teacher)[plan.depth - 1]


def _of(params: Params, of_teacher: Array, function: Callable[[Any], Array]) -> Array:
    """The function of the teacher's parameters, or of the student's; only one is computed."""
    return jax.lax.cond(of_teacher, lambda: function(params["teacher"]), lambda: function(params["student"]))
