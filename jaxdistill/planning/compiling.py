"""Asking the worker: one process a question, and its answer or its complaint."""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

from jaxdistill.errors import InputError
from jaxdistill.parallel import aot
from jaxdistill.planning.worker import Question


def compile_step(question: Question) -> dict[str, Any]:
    """What `worker.answer` says of a question, from a process of its own.

    Raises:
      InputError: what it refuses.
      RuntimeError: it broke, with the end of what it wrote.
    """
    environment = os.environ | aot.topology(question.topology).environment()
    command = [sys.executable, "-m", "jaxdistill.planning.worker"]
    asked = json.dumps(dataclasses.asdict(question))
    done = subprocess.run(command, input=asked, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the compiling process ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    if "error" in said:
        raise InputError(said["error"])
    return said
