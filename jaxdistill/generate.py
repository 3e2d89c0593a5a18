"""Generation: prompts of any lengths continued token by token, in batches of one shape.

A batch reads its prompts once; from then on each token costs one token's work, for keys and values are kept
(`Transformer.extend`). Layers and head are those of training, and so are the log-probabilities, up to rounding.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdistill.errors import InputError
from jaxdistill.head import MASKED
from jaxdistill.losses.ranks import kth_largest
from jaxdistill.losses.vocabulary import WHOLE

MULTIPLE = 32  # buffers are rounded up to it, so that prompts of like lengths share a program


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn: from softmax(z / temperature), less the tokens that top_k and then top_p leave out.

    Attributes:
      temperature: above 0.
      top_k: keep the k most probable tokens, and those that equal the last of them; None for all.
      top_p: keep the fewest most probable tokens whose mass reaches p (Holtzman et al. 2020, arXiv 1904.09751), and
        those that equal the last of them; None for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it must be above 0, or leave sampling away")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must lie above 0 and up to 1")

    def __call__(self, z_BV: Array) -> Array:
        """The logits that are drawn from: divided by the temperature, MASKED where a token is left out."""
        z_BV = z_BV / self.temperature
        if self.top_k is not None:
            least_B = kth_largest(z_BV, self.top_k, WHOLE)
            z_BV = jnp.where(z_BV >= least_B[:, None], z_BV, MASKED)
        if self.top_p is not None:
            sorted_BV = -jnp.sort(-z_BV, axis=-1)
            p_BV = jax.nn.softmax(sorted_BV, axis=-1)
            before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
            least_BV = jnp.min(jnp.where(before_BV < self.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
            z_BV = jnp.where(z_BV >= least_BV, z_BV, MASKED)
        return z_BV


class Buffer(NamedTuple):
    """Texts as they grow.

    Attributes:
      tokens_BL: int32, prompts from the left with room behind them.
      logp_BL: fp32, the log-probability of each generated token given all before it, under the model itself: at
        temperature 1 and over the whole vocabulary. 0 in prompts and behind the text.
      length_B: int32, tokens of each text so far.
      open_B: bool, the rows that go on.
    """

    tokens_BL: Array
    logp_BL: Array
    length_B: Array
    open_B: Array


def make_generate(model: Any, sampling: Sampling | None, stop: Sequence[int], max_tokens: int) -> Callable[..., Buffer]:
    """generate(params, buffer, key_B) -> the buffer with up to `max_tokens` more in each row, to be compiled.

    Args:
      model: with `cache`, `extend` and `head`.
      sampling: how to draw; None takes the most probable token.
      stop: ids that end a text, of which they are part.
      max_tokens: that the buffer has room for behind its longest prompt.

    The keys are one for each row: a row does not depend on the others.
    """

    def read(params: Any, buffer: Buffer) -> Any:
        """A cache with the prompts in it."""
        B, L = buffer.tokens_BL.shape
        prompts_BL = buffer.tokens_BL[:, : L - max_tokens]
        return model.extend(params, prompts_BL, jnp.zeros(B, jnp.int32), model.cache(B, L))[1]

    def logits(params: Any, buffer: Buffer, cache: Any) -> tuple[Array, Any]:
        """What follows each row's last token, [B, V], and the cache with that token in it.

        The last token of a prompt is thereby read twice: one step more, and every token is drawn in one way.
        """
        last_B = buffer.length_B - 1
        last_BL = jnp.take_along_axis(buffer.tokens_BL, last_B[:, None], axis=1)
        h_BLD, cache = model.extend(params, last_BL, last_B, cache)
        return model.head(params, h_BLD).logits()[:, 0], cache

    def draw(z_BV: Array, key_B: Array, step: Array) -> Array:
        if sampling is None:
            return jnp.argmax(z_BV, axis=-1)
        fresh_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, step)
        return jax.vmap(jax.random.categorical)(fresh_B, sampling(z_BV))

    def append(buffer: Buffer, id_B: Array, z_BV: Array) -> Buffer:
        logp_B = jnp.take_along_axis(jax.nn.log_softmax(z_BV), id_B[:, None], axis=-1)[:, 0]
        row_B = jnp.arange(len(id_B))
        place_B = jnp.where(buffer.open_B, buffer.length_B, buffer.tokens_BL.shape[1])  # past the end: dropped
        return Buffer(
            buffer.tokens_BL.at[row_B, place_B].set(id_B.astype(jnp.int32), mode="drop"),
            buffer.logp_BL.at[row_B, place_B].set(logp_B, mode="drop"),
            buffer.length_B + buffer.open_B,
            buffer.open_B & ~jnp.isin(id_B, jnp.array(stop, jnp.int32)),
        )

    def generate(params: Any, buffer: Buffer, key_B: Array) -> Buffer:
        def more(carry):
            step, buffer, _ = carry
            return (step < max_tokens) & jnp.any(buffer.open_B)

        def go_on(carry):
            step, buffer, cache = carry
            z_BV, cache = logits(params, buffer, cache)
            return step + 1, append(buffer, draw(z_BV, key_B, step), z_BV), cache

        return jax.lax.while_loop(more, go_on, (jnp.int32(0), buffer, read(params, buffer)))[1]

    return generate


class Text(NamedTuple):
    """What follows a prompt.

    Attributes:
      ids: int32 [T], the prompt not included, the id that stopped it included.
      logp: fp32 [T], as `Buffer.logp_BL`.
      stopped: whether it ended by itself.
    """

    ids: np.ndarray
    logp: np.ndarray
    stopped: bool


def generate(
    on_batch: Callable[[Buffer, Array], Buffer],
    prompts: Sequence[np.ndarray],
    *,
    max_tokens: int,
    size: int = 8,
    seed: int = 0,
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[Text]:
    """What a model makes of every prompt.

    Args:
      on_batch: (buffer, key_B) -> what `make_generate` gives for it.
      prompts: ids, at least one each.
      max_tokens: as `make_generate` was given it.
      size: rows of a batch. Neither it nor the other prompts change what is drawn for a prompt.
      seed: a prompt's tokens depend on it, on the prompt's place among all, and on nothing else.
      track: called with the batches, gives them back one by one; a progress bar.

    Raises InputError for an empty prompt, and where a model has not learned as many positions.
    """
    if empty := [number for number, prompt in enumerate(prompts) if not len(prompt)]:
        raise InputError(f"prompt {empty[0]} is empty: give it at least one token")
    key = jax.random.key(seed, impl="threefry2x32")
    longest = max((len(prompt) for prompt in prompts), default=0)
    length = -(-(longest + max_tokens) // MULTIPLE) * MULTIPLE
    found: list[Text] = []
    for start in track(range(0, len(prompts), size)):
        part = prompts[start : start + size]
        key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(size))
        buffer = on_batch(_buffer(part, size, length), key_B)
        found += [_text(buffer, row, len(prompt)) for row, prompt in enumerate(part)]
    return found


def _buffer(prompts: Sequence[np.ndarray], size: int, length: int) -> Buffer:
    """Prompts as rows; rows that are left over hold one token and are closed."""
    tokens_BL, length_B = np.zeros((size, length), np.int32), np.ones(size, np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BL[row, : len(prompt)], length_B[row] = prompt, len(prompt)
    return Buffer(
        jnp.asarray(tokens_BL), jnp.zeros((size, length)), jnp.asarray(length_B), jnp.arange(size) < len(prompts)
    )


def _text(buffer: Buffer, row: int, given: int) -> Text:
    own = slice(given, int(buffer.length_B[row]))
    ids, logp = np.asarray(buffer.tokens_BL)[row, own], np.asarray(buffer.logp_BL)[row, own]
    return Text(ids, logp, not bool(buffer.open_B[row]))
