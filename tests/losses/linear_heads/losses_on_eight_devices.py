"""Every loss that a sharded vocabulary can have, on meshes of eight fake CPU devices and on one.

test_losses_on_devices runs it in a process of its own, since the number of devices is fixed when JAX starts. All losses
of one kind of target share a pass, and with it a program.
"""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses import labels, transforms, truncate
from jaxdistill.losses.adaptive_kl import AdaptiveKL
from jaxdistill.losses.boundary import BoundaryMass, Bounded
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.decoupled_kd import DecoupledKD
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.jensen_shannon import JensenShannon
from jaxdistill.losses.linear_heads import Sharding, token_values, weighted_sum
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.reverse_kl import ReverseKL
from jaxdistill.losses.sampled import SampledCrossEntropy
from jaxdistill.losses.sinkhorn import Sinkhorn
from jaxdistill.losses.skew import DifficultySkew, SkewForwardKL, SkewReverseKL
from jaxdistill.losses.sorted_l1 import SortedL1
from jaxdistill.losses.statistics import MassBelowTeacher, TeacherCrossEntropy, TeacherEntropy, ToReference
from jaxdistill.losses.targets import NO_ID, Dense, Sampled, TopK
from jaxdistill.losses.top_k import TopKDivergence
from jaxdistill.losses.total_variation import NegativeLogAcceptance, TotalVariation
from jaxdistill.losses.z_loss import ZLoss
from jaxdistill.parallel.mesh import Mesh

B, L, D, V, S = 8, 6, 16, 1024, 12
RNG = np.random.default_rng(0)
LAYOUTS = {
    "vocabulary": (Mesh(fsdp=1, tensor=8), Sharding(vocabulary=("tensor",))),
    "tokens, positions, width and vocabulary": (
        Mesh(context=2, tensor=2),
        Sharding(None, ("fsdp",), ("context",), ("tensor",), ("fsdp", "context")),
    ),
    "vocabulary over two axes": (Mesh(data=2, fsdp=2, tensor=2), Sharding(None, ("data",), (), ("fsdp", "tensor"))),
}


def random_head(width: int) -> Head:
    h_BLD, w_VD = RNG.normal(size=(B, L, width)), RNG.normal(size=(V, width)) / 2
    return Head(jnp.asarray(h_BLD, jnp.float32), jnp.asarray(w_VD, jnp.float32), softcap=9.0, vocab_size=V - 5)


HEAD, TEACHER, OTHER = random_head(D), random_head(2 * D), random_head(D)
LABEL_BL = jnp.asarray(RNG.integers(V - 5, size=(B, L)), jnp.int32)
WEIGHT_BL = jnp.asarray(RNG.choice([0.0, 0.5, 2.0], size=(B, L)), jnp.float32)
ID_BLS = jnp.argsort(jnp.asarray(RNG.normal(size=(B, L, V - 5))), axis=-1)[..., :S].astype(jnp.int32)
P_BLS = jnp.asarray(RNG.dirichlet(np.ones(S), size=(B, L)) * 0.8, jnp.float32)

DENSE = Dense(LABEL_BL, TEACHER, {"base": OTHER})
TOP = TopK.of(LABEL_BL, ID_BLS.at[..., -1].set(NO_ID), jnp.log(P_BLS).at[..., -1].set(-1e30))
KINDS = {
    "whole": (
        DENSE,
        [
            Term(CrossEntropy()), Term(ZLoss()), Term(ForwardKL(2.0)), Term(ReverseKL()), Term(JensenShannon(0.3)),
            Term(SkewForwardKL(0.1)), Term(SkewReverseKL(0.1)), Term(DifficultySkew()), Term(TotalVariation()),
            Term(NegativeLogAcceptance()), Term(DecoupledKD(temperature=2.0)), Term(TeacherCrossEntropy()),
            Term(TeacherEntropy()), Term(MassBelowTeacher()), Term(ToReference(ForwardKL(), "base")),
            Term(ForwardKL(), target=labels.MixLabel(0.3)), Term(ForwardKL(), target=labels.PromoteLabel(0.1)),
            Term(ReverseKL(), target=transforms.Interpolate(0.4)),
            Term(ForwardKL(), target=truncate.Truncate("top_k", 5)),
        ],
    ),
    "top-k": (
        TOP,
        [
            *(Term(TopKDivergence(ForwardKL(), tail)) for tail in ("bucket", "none", "renormalised", "label")),
            Term(TopKDivergence(ReverseKL(2.0))), Term(TopKDivergence(JensenShannon(0.5))), Term(CrossEntropy()),
            Term(ForwardKL(), target=labels.UniformTail()),
        ],
    ),
    "sampled": (Sampled(LABEL_BL, ID_BLS, P_BLS), [Term(SampledCrossEntropy()), Term(CrossEntropy())]),
}  # fmt: skip
SORTING = [
    Term(AdaptiveKL()), Term(SortedL1()), Term(Sinkhorn(window=2)),
    Term(ForwardKL(), target=truncate.Truncate("top_p", 0.5)),
]  # fmt: skip


def summed(terms, target, sharding):
    """head -> (total, values of each term, gradient of the total)."""
    objective = Objective.of({f"{n} {type(term.loss).__name__}": term for n, term in enumerate(terms)})
    coef = {name: 0.3 + 0.1 * n for n, name in enumerate(objective.names)}

    def total(head):
        return weighted_sum(objective, head, target, WEIGHT_BL, coef, positions=2, sharding=sharding)

    return jax.value_and_grad(total, has_aux=True)


def tokenwise(sharding):
    """What chunks of a teacher of another tokenizer are made of: no sum over tokens, and yet differentiable."""
    target = Bounded(LABEL_BL, jnp.arange(V) % 7 == 0)

    def total(head):
        losses = {"surprise": CrossEntropy(), "boundary": BoundaryMass()}
        values = token_values(losses, head, target, WEIGHT_BL, positions=2, sharding=sharding)
        return jnp.sum(values["surprise"] ** 2) + jnp.sum(values["surprise"] * values["boundary"]), values

    return jax.value_and_grad(total, has_aux=True)


def apart(one, other) -> float:
    """The largest difference relative to the size of the array, over all arrays."""
    sizes = jax.tree.map(lambda x, y: float(np.abs(np.subtract(x, y)).max() / np.abs(x).max()), one, other)
    return max(jax.tree.leaves(sizes))


def refusal(term, sharding) -> str:
    try:
        jax.eval_shape(summed([term], DENSE, sharding), HEAD)
    except InputError as error:
        return str(error)
    return "none"


def main():
    functions = {kind: lambda s, t=target, terms=terms: summed(terms, t, s) for kind, (target, terms) in KINDS.items()}
    functions["tokenwise"] = tokenwise
    found = {}
    for kind, function in functions.items():
        alone = jax.jit(function(Sharding()))(HEAD)
        for name, (mesh, layout) in LAYOUTS.items():
            sharding = dataclasses.replace(layout, mesh=mesh.build())
            places = {own: NamedSharding(sharding.mesh, sharding.spec(own)) for own in ("BLD", "VD")}
            h_BLD, w_VD = jax.device_put(HEAD.h_BLD, places["BLD"]), jax.device_put(HEAD.w_VD, places["VD"])
            head = dataclasses.replace(HEAD, h_BLD=h_BLD, w_VD=w_VD)
            program = jax.jit(function(sharding)).lower(head).compile()
            gathered = re.findall(r"= \w+\[([\d,]+)\][^=]* all-gather\(", program.as_text())
            found[f"{kind}: {name}"] = {
                "apart": apart(alone, program(head)),
                "gathered": max((math.prod(map(int, shape.split(","))) for shape in gathered), default=0),
                "rows": V // sharding.size(sharding.vocabulary),
            }
    mesh, layout = LAYOUTS["vocabulary"]
    sharding = dataclasses.replace(layout, mesh=mesh.build())
    found["refused"] = [refusal(term, sharding) for term in SORTING]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
