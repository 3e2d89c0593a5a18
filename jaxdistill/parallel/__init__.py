"""Where arrays live: meshes, and the table from the letters of a name to the axes of a mesh."""

if __name__ != "jaxdistill.parallel":
    raise ImportError("write: from jaxdistill import parallel")
