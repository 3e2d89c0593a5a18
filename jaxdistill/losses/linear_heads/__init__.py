"""Ops on a Head that never form all its logits: what the vocabulary of a language model costs is paid here.

weighted_sum        an objective of several terms, in one pass; token_weights finds what its tokens count for
token_values        the values of all tokens, differentiable, for what is no sum over them
linear_sparse       any loss of the log-normaliser and the logits at a few ids
linear_picks        those two, per token and differentiable
linear_divergence   two whole distributions
linear_top_k        a teacher's most probable tokens
linear_sample       random tokens of a teacher, with weights
linear_pps          as many different ones as are asked for
"""

from jaxdistill.losses.linear_heads.api import token_weights, weighted_sum
from jaxdistill.losses.linear_heads.divergence.api import linear_divergence
from jaxdistill.losses.linear_heads.pps.api import linear_pps
from jaxdistill.losses.linear_heads.sample.api import linear_sample
from jaxdistill.losses.linear_heads.sharding import Sharding
from jaxdistill.losses.linear_heads.sparse.api import linear_picks, linear_sparse
from jaxdistill.losses.linear_heads.top_k.api import linear_top_k
from jaxdistill.losses.linear_heads.values import token_values

__all__ = [
    "Sharding",
    "linear_divergence",
    "linear_picks",
    "linear_pps",
    "linear_sample",
    "linear_sparse",
    "linear_top_k",
    "token_values",
    "token_weights",
    "weighted_sum",
]
