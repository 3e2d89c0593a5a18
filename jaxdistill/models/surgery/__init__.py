"""Cutting and joining models: functions from configurations and parameters to fresh ones that share nothing with them.

`patterns` says which layers to keep and `layers` what follows from that; `truncate`, `patch` and `merge` do it, and
`spliced` runs patched models without joining them. `influence` and `activations` measure what `patterns` and `width`
choose by; `recursive` ties layers.
"""
