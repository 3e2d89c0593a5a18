"""The ladder: decoders of one aspect ratio, so that one number sets the size (arXiv 2502.08606, App. H-I)."""

import math

from jaxdistill.errors import InputError
from jaxdistill.models.transformer import Config

PAPER_LAYERS = {
    "103M": 8, "143M": 9, "198M": 10, "266M": 11, "546M": 14, "975M": 17, "1.82B": 21, "2.72B": 24, "4.82B": 29,
    "7.75B": 34, "12.6B": 40,
}  # fmt: skip
"""The sizes of the paper that its protocols use, by name; `paper(PAPER_LAYERS["143M"])` builds one."""


def rung(
    num_layers: int, width: int, vocab_size: int, *, head_size: int = 128, multiple: int = 128, **changes
) -> Config:
    """A decoder with heads of `head_size` side by side over its width, and an mlp 8/3 times as wide.

    Args:
      num_layers, width: N and D.
      vocab_size: the tokenizer's size.
      head_size: K; it must divide the width.
      multiple: the mlp width is rounded up to a multiple of this.
      **changes: any other field of `Config`.
    """
    if width % head_size:
        raise InputError(f"a width of {width} cannot be cut into heads of {head_size}")
    return Config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=width // head_size,
        head_size=head_size,
        mlp_width=math.ceil(8 * width / 3 / multiple) * multiple,
        **changes,
    )


def paper(num_layers: int, vocab_size: int = 32_768, **changes) -> Config:
    """A rung of the paper's ladder: width 128 * layers, heads of 128, the learning rate stated at width 1024."""
    return rung(num_layers, 128 * num_layers, vocab_size, **({"base_width": 1024} | changes))


def laptop(width: int, vocab_size: int, **changes) -> Config:
    """The ladder continued downward: about one layer for every 32 of width, heads of 16, the rate as at width 64.

    Two layers are the least: one alone cannot look up what followed an earlier token, and would be another family.
    """
    defaults = {"head_size": 16, "multiple": 8, "base_width": 64}
    return rung(max(2, round(width / 32)), width, vocab_size, **(defaults | changes))
