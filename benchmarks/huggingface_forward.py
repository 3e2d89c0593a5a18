"""Is our forward pass as fast as that of transformers on the same machine?

    python benchmarks/huggingface_forward.py             # 12 layers, width 768, fp32, all cores
    python benchmarks/huggingface_forward.py --layers 2  # a look

A Llama-like decoder of random weights is made by transformers, saved, read by us, and run by both on the same tokens:
forward pass with all logits, PyTorch with its scaled-dot-product attention, ours compiled. Both take turns; the time of
each is the least of the rounds, and their ratio is that of the least times. Before that, the logits are compared.

Needs torch and transformers, which nothing else here does.
"""

import argparse
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from importlib import metadata

import jax
import numpy as np
import report

from jaxdistill.models.huggingface import reading
from jaxdistill.models.transformer import Transformer

VOCABULARY, WIDTH, HEADS, KV_HEADS, MLP = 32_000, 768, 12, 4, 2048
SHAPES = ((1, 128), (1, 512), (4, 512))  # sequences, positions


def make(directory: pathlib.Path, layers: int):
    """The model of transformers, saved to a directory."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=2048,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model.save_pretrained(directory)
    return model


def theirs(model) -> Callable[[np.ndarray], np.ndarray]:
    """tokens -> logits with PyTorch."""
    import torch

    def run(tokens_BL):
        with torch.inference_mode():
            return model(torch.from_numpy(tokens_BL), use_cache=False).logits.numpy()

    return run


def ours(directory: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """tokens -> logits with the same weights here."""
    source = reading.open_checkpoint(directory)
    model, params = Transformer(source.config), jax.device_put(reading.read_params(source))

    @jax.jit
    def forward(params, tokens_BL):
        return model.head(params, model.hidden(params, tokens_BL)[0]).logits()

    return lambda tokens_BL: np.asarray(forward(params, tokens_BL.astype(np.int32)))


def least_times(runs: dict[str, Callable], tokens_BL: np.ndarray, rounds: int) -> dict[str, float]:
    """Milliseconds of each, the least of the rounds, in which they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run(tokens_BL)
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: min(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rows, load = [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        runs = {"torch": theirs(make(pathlib.Path(directory), options.layers)), "ours": ours(pathlib.Path(directory))}
        for B, L in SHAPES:
            tokens_BL = np.random.default_rng(0).integers(VOCABULARY, size=(B, L))
            logits = [run(tokens_BL) for run in runs.values()]  # which also compiles
            differ = np.abs(logits[0] - logits[1][..., :VOCABULARY]).max()
            found = least_times(runs, tokens_BL, options.rounds)
            ratio = found["ours"] / found["torch"]
            rows.append(
                [f"{B} x {L}", f"{found['torch']:.0f}", f"{found['ours']:.0f}", f"{ratio:.2f}", f"{differ:.0e}"]
            )
    columns = ["tokens", "torch, ms", "ours, ms", "ours / torch", "largest difference of logits"]
    title = f"Forward pass of {options.layers} layers, width {WIDTH}, {HEADS} heads on {KV_HEADS}, mlp {MLP}, fp32"
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("torch", "transformers"))
    notes = f"{versions}; least of {options.rounds} rounds in which both take turns; load before the run {load:.1f}"
    report.write("huggingface_forward", notes, [report.Table(title, columns, rows)])


if __name__ == "__main__":
    main()
