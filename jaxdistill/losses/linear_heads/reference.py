"""The definition: form all logits, apply every loss, take the weighted sum. Use it to check the fast versions."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.linear_heads import terms
from jaxdistill.losses.objective import Objective


def weighted_sum(objective: Objective, head: Head, inputs: Any) -> tuple[Array, dict[str, Array]]:
    """sum_t sum_k coef_k weight_kt loss_kt and the terms per token."""
    z_BLV, factor = head.logits(), terms.factors(objective, inputs)
    values = {
        name: term.loss(z_BLV, objective.target(name, inputs["target"], inputs["knobs"]))
        for name, term in objective.terms
    }
    return sum((jnp.sum(factor[name] * v_BL) for name, v_BL in values.items()), jnp.float32(0)), values
