"""Tokens drawn from a teacher, weighted without bias. `api` chooses, `reference` defines."""
