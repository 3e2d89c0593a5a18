"""Every size between a student and the teacher it was cut from, with no training in between.

Boomerang distillation (Kangaslahti et al. 2025, arXiv 2510.05064): put the teacher's blocks back, one after the other.
`pair` says which models there are, `curve` scores them, `export` writes one of them for transformers.
"""
