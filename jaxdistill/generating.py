"""Text from a run: its model, its tokenizer and prompts."""

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import rich.console
import rich.progress

from jaxdistill import analysis
from jaxdistill.errors import InputError
from jaxdistill.generate import Sampling, generate, make_generate
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.program import precision

ROWS = 8  # of a batch, or a row a device where there are more


def texts(
    directory: str | Path,
    prompts: Sequence[str],
    max_tokens: int,
    sampling: Sampling | None = None,
    *,
    others: Sequence[str | Path] = (),
    average: str = "probability",
    seed: int = 0,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Each prompt with what the run's last checkpoint makes of it, up to an end of document.

    Args:
      directory: the run.
      prompts: texts of at least one token.
      max_tokens: at most so many for each.
      sampling: how to draw; None takes the most probable token.
      others: runs of the same tokenizer; with them the texts are those of all, as `ensemble.Ensemble` averages.
      average: "probability" or "logit".
      seed: of the draws.
      quiet: no progress bar.

    Returns {"prompt", "text": with the prompt, "ids" and "logp": of what was added, "stopped": whether it ended} each.

    Raises InputError where there is no such run or no prompt, a prompt is empty, or another run has other tokens.
    """
    if max_tokens < 1 or not prompts:
        raise InputError("there is nothing to do: give at least one prompt, and at least 1 token for each")
    run = analysis.load_run(directory, mesh=Mesh())
    tokenizer, devices = run.tokenizer, len(jax.devices())
    model, params = analysis.with_others(run, others, average, Mesh())
    made = jax.jit(make_generate(model, sampling, (tokenizer.eos_id,), max_tokens))
    step = functools.partial(precision(run.experiment.dtype)(made), params)
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    size, track = -(-ROWS // devices) * devices, functools.partial(_track, quiet=quiet)
    found = generate(step, encoded, max_tokens=max_tokens, size=size, seed=seed, track=track)
    return [
        {
            "prompt": prompt,
            "text": tokenizer.decode([*given, *text.ids]),
            "ids": text.ids.tolist(),
            "logp": text.logp.tolist(),
            "stopped": text.stopped,
        }
        for prompt, given, text in zip(prompts, encoded, found, strict=True)
    ]


def read(path: Path) -> list[str]:
    """The prompts of a JSONL file, {"prompt": text} a line; InputError that names the first line that is another."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompts in {path}: {error}") from error
    return [_prompt(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _prompt(line: str, where: str) -> str:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise InputError(f'{where} is not {{"prompt": text}}')
    return fields["prompt"]


def _track(items: Sequence[Any], quiet: bool) -> Iterable[Any]:
    console = rich.console.Console(stderr=True)
    return rich.progress.track(items, "generating", console=console, transient=True, disable=quiet)
