"""Ops on a Head that never form all its logits: what the vocabulary of a language model costs is paid here.

  weighted_sum        an objective of several terms, in one pass
  linear_sparse       any loss of the log-normaliser and the logits at a few ids
  linear_picks        those two, per token and differentiable
  linear_divergence   two whole distributions
"""

from jaxdistill.losses.linear_heads.api import weighted_sum
from jaxdistill.losses.linear_heads.divergence.api import linear_divergence
from jaxdistill.losses.linear_heads.sharding import Sharding
from jaxdistill.losses.linear_heads.sparse.api import linear_picks, linear_sparse

__all__ = ["Sharding", "linear_divergence", "linear_picks", "linear_sparse", "weighted_sum"]
