"""Text or ids to batches: sources, tokenizers, tokens on disk, and batches as a pure function of (seed, step)."""

from jaxdistill.data.dataset import Dataset, Tokens, prepare
from jaxdistill.data.markov import Markov
from jaxdistill.data.sequences import Sequences
from jaxdistill.data.sources import Files, Source, Stdlib
from jaxdistill.data.tokenizers import Tokenizer, load_tokenizer
from jaxdistill.data.vocabularies import Bytes, HuggingFace, SentencePiece
from jaxdistill.data.windows import Batch

__all__ = [
    "Batch",
    "Bytes",
    "Dataset",
    "Files",
    "HuggingFace",
    "Markov",
    "SentencePiece",
    "Sequences",
    "Source",
    "Stdlib",
    "Tokenizer",
    "Tokens",
    "load_tokenizer",
    "prepare",
]
