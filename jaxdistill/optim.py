"""Optimizers and schedules. Rates are inputs of the step, so runs of one shape share one compiled program."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdistill import dims
from jaxdistill.errors import InputError


@dataclasses.dataclass(frozen=True)
class Linear:
    """A coefficient that goes from `start` to `end` over the first `fraction` of the run and stays there."""

    start: float
    end: float
    fraction: float = 1.0

    def __call__(self, step: int, steps: int) -> float:
        progress = min(1.0, step / max(1.0, self.fraction * steps))
        return self.start + (self.end - self.start) * progress


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, a warm-up and a cosine to almost nothing (arXiv 2502.08606, App. G).

    Attributes:
      peak: learning rate at the top, for a model of `model.base_width`; `Config.lr_multiplier` carries it to others.
      warmup: steps of linear warm-up.
      final: the last rate as a fraction of the peak.
      weight_decay: taken off every matrix per step at the top of the schedule, independent of the learning rate
        (Wortsman et al. 2023 call this independent weight decay).
      clip: bound on the global gradient norm.
      b1, b2, eps: of Adam. The paper does not state its own.
    """

    peak: float = 1e-2
    warmup: int = 2000
    final: float = 1e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self):
        for name in ("peak", "clip", "eps"):
            if not getattr(self, name) > 0:
                raise InputError(f"optim.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("warmup", "final", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"optim.{name} is {getattr(self, name)}; it must not be negative")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"optim.{name} is {getattr(self, name)}; it must be at least 0 and below 1")

    def fraction(self, step: int, steps: int) -> float:
        """The rate at `step` of `steps` as a fraction of the peak; the first step is already above zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, steps - 1 - self.warmup))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))

    def rates(self, step: int, steps: int) -> dict[str, np.float32]:
        """The inputs of one step: learning rate and weight decay."""
        fraction = self.fraction(step, steps)
        return {"learning_rate": np.float32(self.peak * fraction), "decay": np.float32(self.weight_decay * fraction)}

    def transform(self) -> optax.GradientTransformation:
        """Clipping and Adam; the rates come in `apply`."""
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.scale_by_adam(self.b1, self.b2, self.eps))

    def apply(self, params: Any, direction: Any, rates: dict[str, Any], multipliers: Any) -> Any:
        """params - rate * multiplier * direction - decay * params, with no decay on norm gains."""

        def move(x, d, multiplier, own):
            decay = rates["decay"] * x if len(own.removeprefix("N")) > 1 else jnp.zeros_like(x)
            return x - rates["learning_rate"] * multiplier * d - decay

        return jax.tree.map(move, params, direction, multipliers, dims.tree_letters(params))
