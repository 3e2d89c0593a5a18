"""Gemma 2, and the text model of Gemma 3."""

import dataclasses
import math

from jaxdistill.models.design import AttentionDesign, Design, GatedMLP, RMSNorm, Rotary, Window
from jaxdistill.models.variant import Variant


def gemma2(
    num_layers: int, width: int, num_heads: int, num_kv_heads: int, mlp_width: int, *, head_size: int = 256,
    query_scalar: float = 256.0, vocab_size: int = 256_000, window: int = 4096,
) -> Variant:  # fmt: skip
    """Gemma 2: soft-caps, a second norm on what is added, and a window in every other layer, the first among them."""
    local = Window(window, tuple(range(0, num_layers, 2)))
    return Variant(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        head_size=head_size,
        mlp_width=mlp_width,
        num_kv_heads=num_kv_heads,
        qk_norm=False,
        rope_base=10_000.0,
        softcap=30.0,
        base_width=width,
        design=Design(
            norm=RMSNorm(unit_offset=True),
            attention=AttentionDesign(scale=query_scalar**-0.5, softcap=50.0, window=local),
            mlp=GatedMLP("gelu_tanh"),
            residual="sandwich",
            embed_scale=math.sqrt(width),
            logit_scale=1.0,
        ),
    )


def gemma3(
    num_layers: int, width: int, num_heads: int, num_kv_heads: int, mlp_width: int, *, head_size: int = 256,
    query_scalar: float = 256.0, vocab_size: int = 262_144, window: int = 512,
) -> Variant:  # fmt: skip
    """Gemma 3: normalised queries and keys for the soft-caps, and a window in five of six layers, with its own base."""
    older = gemma2(num_layers, width, num_heads, num_kv_heads, mlp_width, head_size=head_size, vocab_size=vocab_size)
    local = Window(window, tuple(n for n in range(num_layers) if (n + 1) % 6))
    attention = AttentionDesign(scale=query_scalar**-0.5, window=local)
    design = dataclasses.replace(older.design, position=Rotary(local_base=10_000.0), attention=attention)
    return dataclasses.replace(older, qk_norm=True, rope_base=1e6, softcap=None, design=design)


def gemma2_2b() -> Variant:
    return gemma2(26, 2304, 8, 4, 9216)


def gemma2_9b() -> Variant:
    return gemma2(42, 3584, 16, 8, 14_336)


def gemma2_27b() -> Variant:
    return gemma2(46, 4608, 32, 16, 36_864, head_size=128, query_scalar=144.0)


def gemma3_1b() -> Variant:
    return gemma3(26, 1152, 4, 1, 6912)
