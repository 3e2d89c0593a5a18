"""lm-eval (EleutherAI's harness) in this process: its tasks, asked of a model that is loaded already, without torch.

Importing this module needs the extra `eval`. Tasks whose data lie in local files run offline; others fetch theirs.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.data import Tokenizer
from jaxdistill.errors import InputError
from jaxdistill.evals.continuations import Continuation, Likelihood, likelihoods
from jaxdistill.generate import Sampling, Text, generate

try:
    from lm_eval import simple_evaluate  # ty: ignore[import-not-found]
    from lm_eval.api.model import TemplateLM  # ty: ignore[import-not-found]
    from lm_eval.tasks import TaskManager  # ty: ignore[import-not-found]
except ImportError as error:
    raise InputError("tasks of lm-eval need a package: pip install 'jaxdistill[eval]'") from error


def evaluate(model: "Model", tasks: Sequence[str], include: Path | None = None) -> dict[str, dict[str, float]]:
    """The metrics of each task by name, as lm-eval calls them: {"my_task": {"acc,none": 0.5, ...}}.

    Args:
      model: what is asked.
      tasks: their names.
      include: a directory of task files (YAML); the tasks that come with lm-eval are then not looked through.

    Raises InputError where a task does not exist, or its data cannot be had.
    """
    manager = TaskManager(include_path=None if include is None else str(include), include_defaults=include is None)
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        where = "that come with lm-eval" if include is None else f"in {include}"
        raise InputError(f"there is no task {unknown[0]!r} among those {where}")
    options = {"task_manager": manager, "bootstrap_iters": 0, "log_samples": False}
    try:
        found = simple_evaluate(model=model, tasks=list(tasks), **options)
    except OSError as error:  # a file that is not there, a hub that cannot be reached
        raise InputError(f"lm-eval cannot read the data of {', '.join(tasks)}: {error}") from error
    return {
        task: {name: float(value) for name, value in metrics.items() if "," in name and isinstance(value, int | float)}
        for task, metrics in found["results"].items()
    }


class Model(TemplateLM):
    """A model as lm-eval sees it.

    A text is scored in windows of the training length, without its first token, which training never asks for; a
    context is cut to the window from the left. An empty context is the end-of-document token, as lm-eval has it.

    Args:
      tokenizer: of the model.
      on_batch: batch -> what `continuations.make_likelihoods` gives for it.
      size: rows of a batch.
      limit: inputs of a window.
      generator: (sampling, max_tokens) -> what `generate.generate` calls with a buffer and its keys.
      track: as for `continuations.likelihoods`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        on_batch: Callable[[Any], Any],
        *,
        size: int,
        limit: int,
        generator: Callable[[Sampling | None, int], Callable[..., Any]],
        track: Callable[[Sequence[Any]], Any] = iter,
    ):
        super().__init__()
        self._tokenizer, self._on_batch, self._generator, self._limit = tokenizer, on_batch, generator, limit
        self._batches = {"size": size, "track": track}

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eos_id

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._tokenizer.encode(string).tolist()

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        items = [Continuation(np.array([*given, *text], np.int32), len(given)) for _, given, text in requests]
        return [(found.logp, found.greedy) for found in self._likelihoods(items)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows = [self._windows(self._tokenizer.encode(request.args[0])) for request in requests]
        found = iter(self._likelihoods([item for own in windows for item in own]))
        return [sum(next(found).logp for _ in own) for own in windows]

    def _likelihoods(self, items: Sequence[Continuation]) -> list[Likelihood]:
        return likelihoods(self._on_batch, items, limit=self._limit, **self._batches)

    def _windows(self, ids: np.ndarray) -> list[Continuation]:
        """Neighbours share a token, the last label of the one and the first input of the other."""
        starts = range(0, len(ids) - 1, self._limit)
        return [Continuation(ids[start : start + self._limit + 1], 1) for start in starts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        def asked(number: int) -> str:
            return json.dumps(requests[number].args[1], sort_keys=True)

        texts: dict[int, str] = {}
        for same, group in itertools.groupby(sorted(range(len(requests)), key=asked), key=asked):
            places = list(group)
            found = self._generated([requests[n].args[0] for n in places], **json.loads(same))
            texts |= dict(zip(places, found, strict=True))
        return [texts[n] for n in range(len(requests))]

    def _generated(
        self,
        contexts: Sequence[str],
        *,
        until: str | Sequence[str] = (),
        max_gen_toks: int = 256,
        do_sample: bool = False,
        **how: Any,
    ) -> list[str]:
        """What follows each context, up to the first of the texts that end it."""
        if unknown := sorted(set(how) - {"temperature", "top_k", "top_p"}):
            raise InputError(f"the task generates with {unknown[0]!r}, which means nothing here: take it out")
        if max_gen_toks >= self._limit:
            raise InputError(
                f"the task generates {max_gen_toks} tokens, which leaves no room for a context in a window of "
                f"{self._limit}: set max_gen_toks in its generation_kwargs"
            )
        step = self._generator(Sampling(**how) if do_sample else None, max_gen_toks)
        prompts = [self._tokenizer.encode(context)[max_gen_toks - self._limit :] for context in contexts]
        made = generate(step, prompts, max_tokens=max_gen_toks, **self._batches)
        ends = [until] if isinstance(until, str) else until
        return [self._until(prompt, text, ends) for prompt, text in zip(prompts, made, strict=True)]

    def _until(self, prompt: np.ndarray, text: Text, ends: Sequence[str]) -> str:
        whole = self._tokenizer.decode([*prompt, *text.ids])  # as one: a space may hang on what precedes it
        own = whole[len(self._tokenizer.decode(prompt)) :]
        return own[: min((own.index(end) for end in ends if end in own), default=len(own))]
