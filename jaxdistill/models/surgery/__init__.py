"""Cutting and joining models: functions from configurations and parameters to fresh ones that share nothing with them.

`patterns` says which layers to keep, `layers` what follows from that, `truncate` and `patch` do it.
"""
