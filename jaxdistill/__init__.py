"""jaxdistill: distil language models in JAX, from a laptop to a pod.

Only light names live here, so that `from jaxdistill.losses import forward_kl` never drags in the engine.
"""

from jaxdistill.version import __version__

__all__ = ["__version__", "load_run", "load_table"]


def __getattr__(name: str):
    if name in ("load_run", "load_table"):
        from jaxdistill import analysis

        return getattr(analysis, name)
    raise AttributeError(f"module 'jaxdistill' has no attribute {name!r}")
