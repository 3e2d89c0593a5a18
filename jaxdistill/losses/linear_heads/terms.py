"""The terms of an objective on one chunk of logits: each kind of loss in its cheapest form, on one pass for all."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.losses.linear_heads.divergence import chunked as divergence
from jaxdistill.losses.linear_heads.sparse import chunked as sparse
from jaxdistill.losses.linear_heads.sparse.kernels import Kernels
from jaxdistill.losses.loss import Divergence, Sparse
from jaxdistill.losses.objective import Objective
from jaxdistill.losses.ranks import check_whole
from jaxdistill.losses.vocabulary import Vocabulary


def factors(objective: Objective, inputs: Any) -> dict[str, Array]:
    """What multiplies each term's loss: coefficient times weight, fp32 [B, L]."""
    return {
        name: objective.coef(name, inputs["knobs"]) * inputs["weights"].get(f"{name}_BL", inputs["weight_BL"])
        for name in objective.names
    }


def split(objective: Objective) -> tuple[dict[str, Sparse], dict[str, Divergence], dict[str, Any]]:
    """The losses of an objective by kind."""
    losses = {name: term.loss for name, term in objective.terms}
    sparse = {name: loss for name, loss in losses.items() if isinstance(loss, Sparse)}
    divergences = {name: loss for name, loss in losses.items() if isinstance(loss, Divergence)}
    return sparse, divergences, {name: loss for name, loss in losses.items() if name not in {**sparse, **divergences}}


def together(losses: dict[str, Sparse], targets: dict[str, Any], factor: dict[str, Array], tokens: tuple[int, ...]):
    """Several sparse losses as one function of (lse_RBL, z_BLS), with the ids and temperatures it needs."""
    temperatures = tuple(dict.fromkeys(loss.temperature for loss in losses.values()))
    ids = {name: loss.ids(targets[name]) for name, loss in losses.items()}
    ends, id_BLS = 0, jnp.concatenate([jnp.zeros((*tokens, 0), jnp.int32), *ids.values()], axis=-1)
    places = {}
    for name, own_BLS in ids.items():
        places[name] = slice(ends, ends := ends + own_BLS.shape[-1])

    def function(lse_RBL, z_BLS):
        values = {
            name: loss.value(
                lse_RBL[temperatures.index(loss.temperature)],
                z_BLS[..., places[name]] / loss.temperature,
                targets[name],
            )
            for name, loss in losses.items()
        }
        return sum((factor[name] * v_BL for name, v_BL in values.items()), jnp.zeros(tokens)), values

    return function, temperatures, id_BLS


@dataclasses.dataclass(frozen=True)
class OnChunk:
    """An objective as a function of a chunk of logits, with its gradient."""

    objective: Objective
    kernels: Kernels = None

    def __call__(self, z_BLV: Array, inputs: Any, vocabulary: Vocabulary, with_gradient: bool):
        factor = factors(self.objective, inputs)
        targets = {name: self.objective.target(name, inputs["target"], inputs["knobs"]) for name in factor}
        few, divergences, others = split(self.objective)
        values: dict[str, Array] = {}
        gradients: list[Array] = []
        for name, loss in divergences.items():
            values[name], dz_BLV = divergence.on_logits(
                loss, z_BLV, targets[name], factor[name], vocabulary, with_gradient
            )
            gradients += [] if dz_BLV is None else [dz_BLV]
        for name, loss in others.items():
            check_whole(vocabulary, name)
            values[name], pull_back = jax.vjp(functools.partial(loss, target=targets[name]), z_BLV)
            gradients += pull_back(factor[name]) if with_gradient else []
        function, temperatures, id_BLS = together(few, targets, factor, z_BLV.shape[:2])
        _, more, dz_BLV = sparse.on_logits(
            function, temperatures, z_BLV, id_BLS, vocabulary, with_gradient, gradients, self.kernels
        )
        values |= more
        return sum(factor[name] * value_BL for name, value_BL in values.items()), values, dz_BLV
