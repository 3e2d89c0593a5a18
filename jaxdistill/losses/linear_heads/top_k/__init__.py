"""A teacher's K most probable tokens. `api` chooses, `reference` defines."""
