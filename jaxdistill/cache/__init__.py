"""What is kept of a teacher: samplers cut its distribution down, and a cache on disk holds what they kept."""

if __name__ != "jaxdistill.cache":
    raise ImportError("write: from jaxdistill import cache")
