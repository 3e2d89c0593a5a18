"""The definition: form all logits, apply the loss, take the weighted sum. Use it to check the fast versions."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.objective import Objective
from jaxdistill.losses.targets import Target


def weighted_sum(
    objective: Objective, head: Head, target: Target, weight_BL: Array, coef: Mapping[str, Any]
) -> tuple[Array, dict[str, Array]]:
    """sum_t weight_t loss_t and the terms per token."""
    loss_BL, values = objective(head.logits(), target, coef)
    return jnp.sum(weight_BL * loss_BL), values
