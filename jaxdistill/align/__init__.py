"""Two tokenizations of one text: byte-exact spans, chunks that both agree on, and what a chunk is worth to each model.

    Spelling.of -> locate -> align                       on the host: which chunk every token of a batch belongs to
    boundary_logp -> merge -> chunk_logp                 on the device: what chunks are worth, differentiable
    begins, ends -> states_at                            where both sides have read the same text

The method is approximate likelihood matching (ALM, arXiv 2503.20083). `reference` holds the definitions, one row at a
time and with loops; the rest is the same for a batch, without them.

Letters of this room: an array ends in C for the chunks of a row, whatever dims.py says, and in Y for its symbols, which
are bytes and special tokens. L is the length of one side: teacher and student have each their own.
"""

from jaxdistill.align.chunks import NO_CHUNK, Chunks, align
from jaxdistill.align.likelihood import Debias, boundary_logp, chunk_logp, last_token, merge, scored
from jaxdistill.align.nearest import NO_MATCH, nearest, same
from jaxdistill.align.places import NO_PLACE, begins, ends, states_at
from jaxdistill.align.spans import Spans, check_text, locate
from jaxdistill.align.spelling import Spelling, shared_roles

__all__ = [
    "NO_CHUNK",
    "NO_MATCH",
    "NO_PLACE",
    "Chunks",
    "Debias",
    "Spans",
    "Spelling",
    "align",
    "begins",
    "boundary_logp",
    "check_text",
    "chunk_logp",
    "ends",
    "last_token",
    "locate",
    "merge",
    "nearest",
    "same",
    "scored",
    "shared_roles",
    "states_at",
]
