"""What heads, channels of the MLP and channels of the stream do on real texts: the importance that `width` prunes by.

Minitron (Muralidharan et al., arXiv 2407.14679) looks at activations of a forward pass alone: sizes by the L2 norm over
the positions of a sequence, added over sequences. Sums of batches add, and only their order matters.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.models import norms
from jaxdistill.models.design import Experts, GatedMLP
from jaxdistill.models.mlp import ACTIVATIONS
from jaxdistill.models.surgery.influence import entering
from jaxdistill.models.transformer import Config, Params, Transformer


def importance_sums(
    model: Transformer,
    params: Params,
    tokens_BL: Array,
    weight_BL: Array,
    segment_BL: Array | None = None,
    position_BL: Array | None = None,
) -> dict[str, Array]:
    """How large the activations of a batch are, fp32, by the letter that `width.prune` takes.

    "J" [N, J]: the outputs of the heads of each key/value group, before they are mixed. "F" [N, F]: what enters the
    last matrix of the MLP. "D" [D]: what leaves the norms in front of attention and MLP, over all layers.

    Args:
      weight_BL: 0 for tokens that do not count, such as padding; the others count alike.

    InputError for mixtures of experts, whose channels see only some of the tokens.
    """
    config = model.config
    if isinstance(config.design.mlp, Experts):
        raise InputError("the channels of a mixture's experts cannot be measured here: give their importance yourself")
    layers = range(config.num_layers)
    inside = [(name, n) for n in layers for name in ("attention", "values")]
    _, kept, seen = model.look(params, tokens_BL, segment_BL, position_BL, keep=layers, inside=inside)
    states = [entering(model, params, tokens_BL, position_BL), *(kept[n] for n in layers)]
    groups, channels, width = [], [], jnp.zeros(config.width)
    for n in layers:
        layer = jax.tree.map(lambda x: x[n], params["layers"])  # noqa: B023
        found = layer_activations(config, layer, states[n], seen["attention", n], seen["values", n])
        size_H = _size(jnp.linalg.norm(found["heads_BLHK"].astype(jnp.float32), axis=-1), weight_BL)
        groups.append(size_H.reshape(config.num_kv_heads, -1).sum(axis=-1))
        channels.append(_size(found["channels_BLF"], weight_BL))
        width += _size(found["attention_norm_BLD"], weight_BL) + _size(found["mlp_norm_BLD"], weight_BL)
    return {"J": jnp.stack(groups), "F": jnp.stack(channels), "D": width}


def layer_activations(config: Config, layer: Params, x_BLD: Array, p_BHLM: Array, v_BMJK: Array) -> dict[str, Array]:
    """What one layer computes on the way: `heads_BLHK`, `channels_BLF`, `attention_norm_BLD` and `mlp_norm_BLD`.

    Args:
      layer: its parameters, without N.
      x_BLD: what enters it.
      p_BHLM, v_BMJK: its attention's probabilities and values, as `Transformer.look` gives them.
    """

    def norm(name, x):
        return norms.apply(x, layer[f"{name}_D"], layer.get(f"{name}_bias_D"), config.design.norm, config.norm_eps)

    residual = config.design.residual
    heads_BLHK = mix(p_BHLM, v_BMJK)
    read_BLD = x_BLD
    if residual != "parallel":
        attended_BLD = output(layer["attention"], heads_BLHK)
        read_BLD = x_BLD + (norm("attention_post_norm", attended_BLD) if residual == "sandwich" else attended_BLD)
    mlp_norm_BLD = norm("mlp_norm", read_BLD)
    return {
        "heads_BLHK": heads_BLHK,
        "channels_BLF": mlp_channels(config, layer["mlp"], mlp_norm_BLD),
        "attention_norm_BLD": norm("attention_norm", x_BLD),
        "mlp_norm_BLD": mlp_norm_BLD,
    }


def mix(p_BHLM: Array, v_BMJK: Array) -> Array:
    """The values under the probabilities, [B, L, H, K] in their dtype: what each head says."""
    B, H, L, M = p_BHLM.shape
    p_BJGLM = p_BHLM.reshape(B, v_BMJK.shape[2], -1, L, M).astype(v_BMJK.dtype)
    return jnp.einsum("bjglm,bmjk->bljgk", p_BJGLM, v_BMJK).reshape(B, L, H, -1)


def output(attention: Params, heads_BLHK: Array) -> Array:
    """What the attention's last matrix makes of the heads, [B, L, D]."""
    out_BLD = jnp.einsum("blhk,hkd->bld", heads_BLHK, attention["o_HKD"].astype(heads_BLHK.dtype))
    return out_BLD + attention["o_bias_D"].astype(out_BLD.dtype) if "o_bias_D" in attention else out_BLD


def mlp_channels(config: Config, mlp: Params, x_BLD: Array) -> Array:
    """What enters the last matrix of an MLP that is no mixture, [B, L, F]."""

    def project(name):
        out_BLF = x_BLD @ mlp[f"{name}_DF"].astype(x_BLD.dtype)
        return out_BLF + mlp[f"{name}_bias_F"].astype(x_BLD.dtype) if f"{name}_bias_F" in mlp else out_BLF

    activation = ACTIVATIONS[config.design.mlp.activation]
    if isinstance(config.design.mlp, GatedMLP):
        return activation(project("gate")) * project("up")
    return activation(project("up"))


def _size(x_BLX: Array, weight_BL: Array) -> Array:
    """The L2 norm over the positions that count, added over sequences: [B, L, X] to fp32 [X]."""
    x_BLX = jnp.where((weight_BL != 0)[..., None], x_BLX, 0).astype(jnp.float32)
    return jnp.sum(jnp.linalg.norm(x_BLX, axis=1), axis=0)
