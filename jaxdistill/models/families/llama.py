"""Llama, and the families that grew from it: Mistral, Mixtral, Qwen 2 and 3."""

from jaxdistill.models.design import (
    AttentionDesign,
    Design,
    Experts,
    GatedMLP,
    LinearScaling,
    Llama3Scaling,
    Rotary,
    Window,
)
from jaxdistill.models.variant import Variant


def llama(
    vocab_size: int, num_layers: int, width: int, num_heads: int, num_kv_heads: int, mlp_width: int, *,
    head_size: int | None = None, rope_base: float = 10_000.0, norm_eps: float = 1e-5, tied: bool = False,
    qk_norm: bool = False, scaling: LinearScaling | Llama3Scaling | None = None,
    attention: AttentionDesign = AttentionDesign(), mlp: GatedMLP | Experts = GatedMLP(),
) -> Variant:  # fmt: skip
    """Llama, and with other arguments its descendants Mistral, Qwen and Mixtral."""
    return Variant(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        head_size=head_size or width // num_heads,
        mlp_width=mlp_width,
        num_kv_heads=num_kv_heads,
        tied=tied,
        qk_norm=qk_norm,
        rope_base=rope_base,
        norm_eps=norm_eps,
        base_width=width,
        design=Design(position=Rotary(scaling=scaling), attention=attention, mlp=mlp, logit_scale=1.0),
    )


def llama2_7b() -> Variant:
    return llama(32_000, 32, 4096, 32, 32, 11_008)


def llama3_8b() -> Variant:
    return llama(128_256, 32, 4096, 32, 8, 14_336, rope_base=500_000.0)


def llama3_1_8b() -> Variant:
    return llama(128_256, 32, 4096, 32, 8, 14_336, rope_base=500_000.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))


def llama3_1_70b() -> Variant:
    return llama(128_256, 80, 8192, 64, 8, 28_672, rope_base=500_000.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))


def llama3_2_1b() -> Variant:
    return llama(
        128_256, 16, 2048, 32, 8, 8192, rope_base=500_000.0, tied=True, scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192)
    )


def llama3_2_3b() -> Variant:
    return llama(
        128_256, 28, 3072, 24, 8, 8192, rope_base=500_000.0, tied=True, scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192)
    )


def mistral_7b() -> Variant:
    """Version 0.1, with its window."""
    return llama(32_000, 32, 4096, 32, 8, 14_336, attention=AttentionDesign(window=Window(4096)))


def mixtral_8x7b() -> Variant:
    return llama(32_000, 32, 4096, 32, 8, 14_336, rope_base=1e6, mlp=Experts(8, 2))


def qwen2(vocab_size: int, num_layers: int, width: int, num_heads: int, num_kv_heads: int, mlp_width: int, *,
          tied: bool) -> Variant:  # fmt: skip
    """Qwen 2 and 2.5: Llama with biases on queries, keys and values."""
    return llama(
        vocab_size, num_layers, width, num_heads, num_kv_heads, mlp_width, rope_base=1e6, norm_eps=1e-6, tied=tied,
        attention=AttentionDesign(qkv_bias=True),
    )  # fmt: skip


def qwen2_5_0_5b() -> Variant:
    return qwen2(151_936, 24, 896, 14, 2, 4864, tied=True)


def qwen2_5_1_5b() -> Variant:
    return qwen2(151_936, 28, 1536, 12, 2, 8960, tied=True)


def qwen2_5_7b() -> Variant:
    return qwen2(152_064, 28, 3584, 28, 4, 18_944, tied=False)


def qwen3(num_layers: int, width: int, num_heads: int, num_kv_heads: int, mlp_width: int, *, tied: bool,
          mlp: GatedMLP | Experts = GatedMLP()) -> Variant:  # fmt: skip
    """Qwen 3: Llama with normalised queries and keys, and heads of 128 whatever the width."""
    return llama(
        151_936, num_layers, width, num_heads, num_kv_heads, mlp_width, head_size=128, rope_base=1e6, norm_eps=1e-6,
        tied=tied, qk_norm=True, mlp=mlp,
    )  # fmt: skip


def qwen3_0_6b() -> Variant:
    return qwen3(28, 1024, 16, 8, 3072, tied=True)


def qwen3_1_7b() -> Variant:
    return qwen3(28, 2048, 16, 8, 6144, tied=True)


def qwen3_4b() -> Variant:
    return qwen3(36, 2560, 32, 8, 9728, tied=True)


def qwen3_8b() -> Variant:
    return qwen3(36, 4096, 32, 8, 12_288, tied=False)


def qwen3_30b_a3b() -> Variant:
    return qwen3(48, 2048, 32, 4, 768, tied=False, mlp=Experts(128, 8))
