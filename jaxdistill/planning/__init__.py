"""What a run would take on devices that nobody has to own: its step, compiled for them and read.

inputs     the arguments of the step as shapes on a mesh: no parameter is made, no data is read
facts      what the compiled step says of itself: memory, work, collectives
worker     the process that compiles; `compiling` starts it
estimate   seconds of a step, from peaks and assumptions that are said
advice     which setting helps where the step does not fit
search     other meshes, batches and ways to save memory, ranked
report     all that as text
answer     what `jaxdistill plan` prints
"""

if __name__ != "jaxdistill.planning":
    raise ImportError("write: from jaxdistill import planning")
