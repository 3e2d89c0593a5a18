"""Decoders as pure functions over named, stacked parameters. The contract is in `transformer.Transformer`."""

if __name__ != "jaxdistill.models":
    raise ImportError("write: from jaxdistill import models")
