"""Families of public decoders, and named sizes of their common checkpoints: `families.llama.llama3_1_8b()`.

A family is a function from sizes to a configuration: what its members share is said once. Vocabularies are the rows of
the embeddings; an import replaces them by the size of the tokenizer.
"""
