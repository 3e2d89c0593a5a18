"""Checkpoints in the format of Hugging Face `transformers`, read and written without it.

families     a family: its config.json as a Config and back, and its table of tensors
tables       a tensor of theirs beside one of ours, and the change of layout that their letters imply
attributes   a config.json of which every attribute is understood, known to be harmless, or refused
files        safetensors, whole or in shards
reading      a directory to a configuration and parameters
writing      a configuration and parameters to a directory
"""
