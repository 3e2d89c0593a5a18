"""As many of a teacher's tokens as are asked for, drawn with probability proportional to size.

`api` chooses, `reference` defines.
"""
