"""A teacher in int8, and how far it is from what it was."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax

from jaxdistill import evals
from jaxdistill.data import Batch
from jaxdistill.models import quantised
from jaxdistill.models.transformer import Transformer
from jaxdistill.parallel import rules
from jaxdistill.program import head_sharding, place_on, precision
from jaxdistill.step import make_eval
from jaxdistill.teacher import TEACHER

MEASURED = 4  # batches


def to_int8(
    model: Transformer,
    params: Any,
    batches: Iterable[Batch],
    dtype: str,
    mesh: jax.sharding.Mesh,
    table: rules.Rules = rules.DEFAULT,
) -> tuple[Any, dict[str, float]]:
    """The parameters with their layers in int8, and the facts: what they are worth and what they take.

    While this runs, both are there.

    Args:
      model, params: frozen, in the compute dtype, on the mesh.
      batches: of its own tokens, to measure on.
      dtype, mesh, table: of the run, and where the parameters lie.

    Returns:
      (parameters, {"kl": KL(before || after) in nats a token, "bytes": of all parameters, "bytes_before"}).

    Raises InputError where the extra `quant` is not installed.
    """
    places = rules.shardings(jax.eval_shape(quantised.quantise, params), mesh, table)
    narrow = jax.jit(quantised.quantise, out_shardings=places)(params)
    model = dataclasses.replace(model, shard=rules.constrain(mesh, table))
    compare = make_eval(model, evals.objective(True), teachers={TEACHER: model}, sharding=head_sharding(mesh, table))
    scores = evals.evaluate(
        precision(dtype)(jax.jit(compare)), narrow, {TEACHER: params}, map(place_on(mesh, table), batches)
    )
    return narrow, {"kl": scores["forward_kl"], "bytes": _bytes(narrow), "bytes_before": _bytes(params)}


def _bytes(params: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(params))
