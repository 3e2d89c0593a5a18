"""Caches of other systems, read as they are on disk: one iterator of sequences for each layout."""

from jaxdistill.cache.foreign.sequence import Sequence

__all__ = ["Sequence"]
