"""Losses that need the log-normaliser and the logits at a few ids: cross-entropy, top-K, random-sampled KD."""
