"""Sums of a loss over all tokens of a Head, without all logits at once. `api` chooses, `reference` defines."""
