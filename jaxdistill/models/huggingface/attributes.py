"""A config.json, read so that no attribute goes unnoticed."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxdistill.errors import InputError

HARMLESS = frozenset({
    # where it comes from and how it was run
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache",
    "cache_implementation", "is_decoder", "output_attentions", "output_hidden_states", "return_dict",
    "gradient_checkpointing", "task_specific_params", "pretraining_tp", "prefix",
    # tokens, which the tokenizer knows
    "bos_token_id", "eos_token_id", "pad_token_id",
    # initialisation and regularisation of a training that is over
    "initializer_range", "init_std", "attention_dropout", "hidden_dropout", "classifier_dropout", "dropout",
    "layerdrop", "attn_pdrop", "embd_pdrop", "resid_pdrop", "activation_dropout", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise",
})  # fmt: skip
"""Attributes that change no logit, whatever they hold."""


class Attributes:
    """The attributes of a config.json; each is taken once, and `finish` refuses what nobody took."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._left, self.where = dict(values), where

    def take(self, name: str, *default: Any) -> Any:
        """The value of an attribute, or its default; InputError where it has neither."""
        if name not in self._left and not default:
            raise InputError(f"{self.where} has no attribute {name!r}, which says what the model is: add it")
        return self._left.pop(name, *default)

    def number(self, name: str, *default: Any, or_none: bool = False) -> Any:
        """As `take`, for an attribute that is a number, or null where that is allowed or the default."""
        value = self.take(name, *default)
        if isinstance(value, bool) or (
            not isinstance(value, (int, float)) and not (value is None and (or_none or None in default))
        ):
            raise InputError(f"{self.where}: {name} is {value!r}, which is not a number")
        return value

    def require(self, name: str, *allowed: Any) -> None:
        """Take an attribute that must have one of these values, the first where it is absent."""
        if (value := self.take(name, allowed[0])) not in allowed:
            raise InputError(
                f"{self.where}: {name} is {value!r}, and models of this family can be read with "
                f"{' or '.join(map(repr, allowed))} only"
            )

    def nested(self, name: str) -> "Attributes":
        """The attributes inside an attribute, none where it is absent or null."""
        values = self.take(name, None)
        if not isinstance(values, dict | None):
            raise InputError(f"{self.where}: {name} is {values!r}, which is not a group of attributes")
        return Attributes(values or {}, f"{self.where}, {name}")

    def __contains__(self, name: str) -> bool:
        return self._left.get(name) is not None

    def finish(self, harmless: Iterable[str] = ()) -> None:
        """InputError that names the attributes that were not taken and may matter."""
        if unknown := sorted(set(self._left) - set(harmless)):
            raise InputError(
                f"{self.where} has attributes that are not understood ({', '.join(unknown)}), and one that is passed "
                "over may change what the model computes; remove those that do not"
            )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError where there is none."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, not an object")
    return content
