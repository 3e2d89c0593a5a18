"""Losses that compare two whole distributions, student and teacher, a chunk of logits at a time."""
