"""Another vocabulary for a model: which rows of its embeddings stay, and what the others start from.

    copies = match(old_table, old_roles, new_table, new_roles)     # the old id of every new token that has one
    fill   = fvt(cut(old_table, new_table, copies, encode))        # what the others are made of
    config, params = transplant(config, params, Plan(copies, embed=fill))

A table gives the bytes of every id, with `b""` for special tokens, and roles name those, such as {"eos": 2}: what
`align.Spelling` takes too. `matching` and `vocabulary` hold the first and the last line; `fills`, `subwords` and
`pursuit` what is between them.
"""
