"""Where tokens become a scalar: (sum, count) pairs, and one division.

Sums and counts add exactly over micro-batches, devices and hosts, so a mean taken at the end does not depend on how the
tokens were divided.
"""

import jax
import jax.numpy as jnp
from jax import Array


def sums(values: dict[str, Array], weight_BL: Array) -> dict[str, Array]:
    """{name: sum_t weight_t value_t}, and the count under "tokens"; fp32 scalars."""
    return {name: jnp.sum(weight_BL * value_BL) for name, value_BL in values.items()} | {"tokens": jnp.sum(weight_BL)}


def divisor(count: Array) -> Array:
    """The count, or where nothing counts the least positive number: every sum is zero there, and so is its mean."""
    return jnp.maximum(count, jnp.finfo(jnp.float32).tiny)


def means(totals: dict[str, Array]) -> dict[str, Array]:
    """{name: sum / count} and the count itself. A batch in which nothing counts has mean zero."""
    count = totals["tokens"]
    return {name: total / divisor(count) for name, total in totals.items() if name != "tokens"} | {"tokens": count}


def add(a: dict[str, Array], b: dict[str, Array]) -> dict[str, Array]:
    """The totals of two disjoint sets of tokens together."""
    return jax.tree.map(jnp.add, a, b)
