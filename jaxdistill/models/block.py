"""One layer of a decoder, written in Flax NNX: the names of its parameters carry their letters, `transformer` stacks N.

A block is a few parts, attention, an MLP and their norms, chosen by the configuration's `design`.
"""

from flax import nnx
from jax import Array

from jaxdistill.models import norms
from jaxdistill.models.attention import Attention, Implementation, View
from jaxdistill.models.design import Experts, GatedMLP, PlainMLP
from jaxdistill.models.mlp import GatedMLP as Gated
from jaxdistill.models.mlp import PlainMLP as Plain
from jaxdistill.models.moe import ExpertMLP
from jaxdistill.shard import Shard

MLPS = {GatedMLP: Gated, PlainMLP: Plain, Experts: ExpertMLP}


class Block(nnx.Module):
    """A pre-norm decoder layer: attention and an MLP, which add to the stream as `design.residual` says."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        sandwich = config.design.residual == "sandwich"
        for name in ("attention_norm", "mlp_norm", *(("attention_post_norm", "mlp_post_norm") if sandwich else ())):
            norms.declare(self, name, "D", config.width, config.design.norm)
        self.attention = Attention(config, rngs=rngs)
        self.mlp = MLPS[type(config.design.mlp)](config, rngs=rngs)
        self.config = config

    def _norm(self, name: str, x_BLD: Array) -> Array:
        return norms.call(self, name, "D", x_BLD, self.config)

    def __call__(
        self,
        x_BLD: Array,
        view: View,
        shard: Shard,
        *,
        implementation: Implementation = None,
        keep: tuple[str, ...] = (),
    ) -> tuple[Array, dict[str, Array]]:
        """The stream after this layer, and the arrays named in `keep`."""
        residual = self.config.design.residual
        attended_BLD, seen = self.attention(
            self._norm("attention_norm", x_BLD), view, shard, implementation=implementation, keep=keep
        )
        if residual == "sandwich":
            attended_BLD = self._norm("attention_post_norm", attended_BLD)
        after_BLD = shard(x_BLD + attended_BLD, "BLD")
        read_BLD = x_BLD if residual == "parallel" else after_BLD
        fed_BLD, routed = self.mlp(self._norm("mlp_norm", read_BLD), shard)
        if residual == "sandwich":
            fed_BLD = self._norm("mlp_post_norm", fed_BLD)
        return shard(after_BLD + fed_BLD, "BLD"), {name: (seen | routed)[name] for name in keep}
