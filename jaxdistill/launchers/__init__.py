"""Where the runs of a sweep are processes: `Local`, this machine; `Ray`, a cluster; `Slurm`, jobs of a queue.

Each starts the same command, `jaxdistill run DIRECTORY`, in a directory that it shares with the sweep. So results,
continuation and table do not depend on who started a run.
"""

from jaxdistill.launchers.launcher import Launcher
from jaxdistill.launchers.local import Local
from jaxdistill.launchers.ray import Ray
from jaxdistill.launchers.slurm import Slurm

__all__ = ["Launcher", "Local", "Ray", "Slurm"]
