"""The families with LayerNorm and plain MLPs: Pythia, which is GPT-NeoX, GPT-2 and OPT."""

from jaxdistill.models.design import Activation, AttentionDesign, Design, LayerNorm, LearnedPositions, PlainMLP, Rotary
from jaxdistill.models.variant import Variant

BIASED = AttentionDesign(qkv_bias=True, output_bias=True)


def pythia(num_layers: int, width: int, num_heads: int, vocab_size: int = 50_304) -> Variant:
    """GPT-NeoX as Pythia has it: a quarter of each head turns, attention and MLP read the same stream."""
    return Variant(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        head_size=width // num_heads,
        mlp_width=4 * width,
        tied=False,
        qk_norm=False,
        rope_base=10_000.0,
        norm_eps=1e-5,
        base_width=width,
        design=Design(
            norm=LayerNorm(),
            position=Rotary(fraction=0.25),
            attention=BIASED,
            mlp=PlainMLP("gelu", bias=True),
            residual="parallel",
            logit_scale=1.0,
        ),
    )


def pythia_70m() -> Variant:
    return pythia(6, 512, 8)


def pythia_160m() -> Variant:
    return pythia(12, 768, 12)


def pythia_410m() -> Variant:
    return pythia(24, 1024, 16)


def pythia_1b() -> Variant:
    return pythia(16, 2048, 8)


def pythia_1_4b() -> Variant:
    return pythia(24, 2048, 16)


def _learned(
    vocab_size: int, num_layers: int, width: int, num_heads: int, position: LearnedPositions, activation: Activation
) -> Variant:
    return Variant(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        head_size=width // num_heads,
        mlp_width=4 * width,
        qk_norm=False,
        norm_eps=1e-5,
        base_width=width,
        design=Design(
            norm=LayerNorm(),
            position=position,
            attention=BIASED,
            mlp=PlainMLP(activation, bias=True),
            logit_scale=1.0,
        ),
    )


def gpt2(num_layers: int = 12, width: int = 768, num_heads: int = 12, vocab_size: int = 50_257) -> Variant:
    """GPT-2; the default is the small one."""
    return _learned(vocab_size, num_layers, width, num_heads, LearnedPositions(1024), "gelu_tanh")


def gpt2_medium() -> Variant:
    return gpt2(24, 1024, 16)


def gpt2_large() -> Variant:
    return gpt2(36, 1280, 20)


def gpt2_xl() -> Variant:
    return gpt2(48, 1600, 25)


def opt(num_layers: int, width: int, num_heads: int, vocab_size: int = 50_272) -> Variant:
    """OPT, but for the one of 350M, which has its norms elsewhere."""
    return _learned(vocab_size, num_layers, width, num_heads, LearnedPositions(2050, offset=2), "relu")


def opt_125m() -> Variant:
    return opt(12, 768, 12)


def opt_1_3b() -> Variant:
    return opt(24, 2048, 32)


def opt_6_7b() -> Variant:
    return opt(32, 4096, 32)
