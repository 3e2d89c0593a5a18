"""The lean form: both heads over tiles of the vocabulary, never a chunk of logits of either.

Two walks give the value: the normalisers first, then the sums that the divergence is made of, together with the sums of
their slopes. The gradient walks once more: dz = (g - q sum_u g_u) / T, with sum_u g_u known by then.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.head import Head
from jaxdistill.losses.linear_heads.sharding import Gradient, Sharding
from jaxdistill.losses.linear_heads.sparse.tiled import picks
from jaxdistill.losses.linear_heads.stream import as_cotangent
from jaxdistill.losses.linear_heads.tiles import Tiles
from jaxdistill.losses.loss import Divergence
from jaxdistill.losses.targets import Dense
from jaxdistill.losses.vocabulary import Vocabulary, each_entry


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def divergence_of(divergence: Divergence, sharding: Sharding, head: Head, target: Dense) -> Array:
    """The divergence of every token, fp32 [B, L]; differentiable in `head`, per token."""
    return _forward(divergence, sharding, head, target)[0]


def _forward(divergence, sharding, head, target):
    kept = sharding.run(functools.partial(_sums, divergence), head, target)
    return divergence.value(*each_entry(kept["sum_BLS"])), (head, target, kept)


def _points(divergence, vocabulary: Vocabulary, student: Tiles, teacher: Tiles, kept, label_BL, tile, z_BLV):
    """(points of the tile, the function that pulls back to log q, q), with both sides normalised by `kept`."""
    T = divergence.temperature
    z_teacher_BLV, _ = teacher.logits(tile, vocabulary)
    log_p_BLV = z_teacher_BLV / T - kept["top_p_BL"][..., None] - kept["rest_p_BL"][..., None]
    log_q_BLV = z_BLV / T - kept["top_q_BL"][..., None] - kept["rest_q_BL"][..., None]
    at_label_BLV = student.slice(tile, vocabulary).at(label_BL, student.columns)
    points_BLV, pull_back = jax.vjp(lambda log_q_BLV: divergence.points(log_p_BLV, log_q_BLV, at_label_BLV), log_q_BLV)
    return points_BLV, pull_back, jnp.exp(log_q_BLV)


def _tiles(head: Head, target: Dense) -> tuple[Tiles, Tiles]:
    student = Tiles.of(head)
    return student, Tiles(target.head, student.columns, student.number)


def _sums(divergence, sharding, vocabulary: Vocabulary, head: Head, target: Dense):
    """Normalisers of both sides, the sums of the divergence and of their slopes, of every token."""
    student, teacher = _tiles(head, target)
    nothing = {"id_BLS": jnp.zeros((*target.label_BL.shape, 0), jnp.int32)}
    kept = {}
    for side, own in (("q", head), ("p", target.head)):
        normaliser = picks(divergence.temperature, sharding, vocabulary, own, nothing)
        kept |= {f"top_{side}_BL": normaliser["top_BL"], f"rest_{side}_BL": normaliser["rest_BL"]}

    def body(carry, tile):
        z_BLV, _ = student.logits(tile, vocabulary)
        points_BLV, pull_back, _ = _points(divergence, vocabulary, student, teacher, kept, target.label_BL, tile, z_BLV)
        slopes_BLV = [
            pull_back(tuple(jnp.full_like(p, i == j) for j, p in enumerate(points_BLV)))[0]
            for i in range(len(points_BLV))
        ]
        fresh_V = student.fresh(tile)
        here = [
            jnp.stack([jnp.sum(jnp.where(fresh_V, x, 0), axis=-1) for x in xs], axis=-1)
            for xs in (points_BLV, slopes_BLV)
        ]
        return jax.tree.map(jnp.add, carry, tuple(here)), None

    number = len(
        jax.eval_shape(divergence.points, *[jax.ShapeDtypeStruct((1, 1, 1), d) for d in ("float32", "float32", "bool")])
    )
    zero = jnp.zeros((*target.label_BL.shape, number), jnp.float32)
    (sum_BLS, slope_BLS), _ = jax.lax.scan(body, (zero, zero), jnp.arange(student.number))
    return kept | {"sum_BLS": vocabulary.add(sum_BLS), "slope_BLS": vocabulary.add(slope_BLS)}


def _backward(divergence, sharding, residuals, dvalue_BL):
    head, target, kept = residuals
    _, through_value = jax.vjp(divergence.value, *each_entry(kept["sum_BLS"]))
    kept = kept | {"dsum_BLS": jnp.stack(through_value(dvalue_BL), axis=-1)}
    gradient = sharding.run(functools.partial(_gradient, divergence), head, target, kept)
    return as_cotangent(head, gradient), None


def _gradient(divergence, sharding, vocabulary: Vocabulary, head: Head, target: Dense, kept) -> Gradient:
    student, teacher = _tiles(head, target)
    slope_BL = jnp.sum(kept["dsum_BLS"] * kept["slope_BLS"], axis=-1)

    def dz_of(tile, z_BLV):
        points = _points(divergence, vocabulary, student, teacher, kept, target.label_BL, tile, z_BLV)
        _, pull_back, q_BLV = points
        dsums = tuple(jnp.broadcast_to(d_BL[..., None], z_BLV.shape) for d_BL in each_entry(kept["dsum_BLS"]))
        dz_BLV = (pull_back(dsums)[0] - q_BLV * slope_BL[..., None]) / divergence.temperature
        return jnp.where(student.fresh(tile), dz_BLV, 0)

    return sharding.join(student.gradient(dz_of, vocabulary, exact=sharding.size(sharding.tokens) > 1))


divergence_of.defvjp(_forward, _backward)
