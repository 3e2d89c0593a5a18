"""Objectives: what one token costs. One objective a file; `linear_heads` sums them without ever forming all logits."""

if __name__ != "jaxdistill.losses":
    raise ImportError("write: from jaxdistill import losses")
