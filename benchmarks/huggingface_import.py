"""How much memory does an import take, beside the checkpoint itself?

    python benchmarks/huggingface_import.py                 # 1.9 GB in bf16, 4 shards
    python benchmarks/huggingface_import.py --layers 4      # smaller

A Llama-like checkpoint of random numbers is written in shards, and imported by a process of its own, whose resident
memory is read from /proc all the while: all of it, and the part that no file backs. What Python, JAX and Orbax take
before the import begins is measured too and told apart. Asked for: at most 1.2 times the checkpoint.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import report

from jaxdistill.models.families.llama import llama
from jaxdistill.models.huggingface.files import ShardWriter
from jaxdistill.models.huggingface.llama import LLAMA
from jaxdistill.models.huggingface.tables import by_tensor

GB = 1e9
VOCABULARY, WIDTH, MLP = 32_000, 2048, 8192


def resident() -> dict[str, float]:
    """Resident memory of this process in GB, whole and without pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 / GB for name in ("VmRSS", "RssAnon")}


def write(directory: Path, layers: int, shard_bytes: int) -> tuple[float, int]:
    """A checkpoint of random bf16 numbers with a small tokenizer; its size in GB, and the number of its shards."""
    import tokenizers

    config = llama(VOCABULARY, layers, WIDTH, 16, 8, MLP)
    sizes, writer = {**config.dims, "V": config.vocab_size}, ShardWriter(directory, shard_bytes)
    rng = np.random.default_rng(0)
    for name, entries in by_tensor(LLAMA.rows(config), sizes).items():
        bits = rng.integers(0, 2**14, size=entries[0][0].shape(sizes), dtype=np.uint16)  # small and positive
        writer.add(name, bits.view(jax.numpy.bfloat16))
    writer.finish()
    attributes = {"model_type": "llama", "max_position_embeddings": 4096, **LLAMA.write(config)}
    (directory / "config.json").write_text(json.dumps(attributes))
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"w{i}" for i in range(config.vocab_size - len(letters)))]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(directory / "tokenizer.json"))
    sizes_of_files = [file.stat().st_size for file in directory.glob("*.safetensors")]
    return sum(sizes_of_files) / GB, len(sizes_of_files)


def measure_import(source: Path, out: Path) -> tuple[dict[str, float], dict[str, float], float]:
    """`measure` of an import."""
    from jaxdistill import exchange

    return measure(lambda: exchange.import_model(source, out, eos="w1"))


def measure(work: Callable[[], object]) -> tuple[dict[str, float], dict[str, float], float]:
    """Memory before some work in this process and at its peak, and the seconds it takes."""
    jax.jit(lambda x: x + 1)(np.zeros(8)).block_until_ready()
    before, peak, done = resident(), resident(), threading.Event()

    def watch():
        while not done.wait(0.005):
            for name, value in resident().items():
                peak[name] = max(peak[name], value)

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    done.set()
    thread.join()
    return before, peak, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--shards", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        source = Path(root) / "source"
        source.mkdir()
        parameters = 2 * VOCABULARY * WIDTH + options.layers * (3 * WIDTH * MLP + 3 * WIDTH**2)
        size, files = write(source, options.layers, 2 * parameters // options.shards + 2**27)
        before, peak, seconds = report.in_fresh_process(measure_import, source, Path(root) / "out")
    rows = [
        [
            kind,
            f"{before[name]:.2f}",
            f"{peak[name]:.2f}",
            f"{(peak[name] - before[name]) / size:.2f}",
            f"{peak[name] / size:.2f}",
        ]
        for kind, name in (("resident", "VmRSS"), ("of it without files", "RssAnon"))
    ]
    columns = ["memory, GB", "before the import", "at its peak", "difference / checkpoint", "peak / checkpoint"]
    title = f"Import of {size:.2f} GB in bf16, {files} shards, {options.layers} layers: {seconds:.0f} s"
    report.write("huggingface_import", "read from /proc/self/status every 5 ms", [report.Table(title, columns, rows)])


if __name__ == "__main__":
    main()
