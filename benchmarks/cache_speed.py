"""How fast is a cache read, and what does writing one add to the teacher's forward pass?

    python benchmarks/cache_speed.py       # two cores, about two minutes

Reading: windows in random order, from disk to arrays that a step takes. Writing: CPU seconds, of all threads together,
so that a shared machine does not count: the forward pass alone with its log-normalisers, and all that a build does.

Expected before measuring: a million tokens a second and more, since decoding is a few passes over short integers; and
less than a tenth for writing, since a sampler and the entropy look at each chunk of logits once more and all else is a
few numbers an entry. That holds where the layers outweigh the vocabulary, as in any teacher worth a cache; the smaller
one here has 38 million parameters in its layers and 17 million in its embedding.
"""

import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import report

VOCABULARY, LENGTH = 128_256, 2048
ROWS, BATCH = 128, 8


def samplers() -> dict[str, Any]:
    from jaxdistill.cache.samplers import PPS, Draws, Top

    return {
        "50 draws": Draws(50), "50 systematic draws": Draws(50, "systematic"), "12 by size": PPS(12), "top 12": Top(12),
        "top 50": Top(50),
    }  # fmt: skip


def spoken(keep: Any, batches: int) -> list[dict[str, Any]]:
    """Columns of batches of windows, of logits that fall like Zipf's law in a random order of the ids."""
    import jax
    import jax.numpy as jnp

    from jaxdistill.cache import codec
    from jaxdistill.cache.columns import to_columns
    from jaxdistill.cache.encode import encode
    from jaxdistill.cache.reader import columns_of
    from jaxdistill.head import Head
    from jaxdistill.losses.linear_heads import Sharding

    layout = codec.layout(keep, VOCABULARY, LENGTH, 1 / 64)
    w_VD = jax.random.normal(jax.random.key(0), (VOCABULARY, 8))

    @jax.jit
    def columns(key):
        h_BLD = 1.6 * jax.random.normal(key, (1, LENGTH, 8))
        head = Head(h_BLD, w_VD, vocab_size=VOCABULARY)
        zeros = jnp.zeros((1, LENGTH), jnp.int32)
        index = jnp.arange(LENGTH, dtype=jnp.uint32)[None]
        return encode(head, zeros, key, index, keep, layout, Sharding())

    keys = (jax.random.key(1 + i, impl="threefry2x32") for i in range(batches))
    return [to_columns(columns(key), columns_of(layout)) for key in keys]


def reading_table() -> report.Table:
    import numpy as np

    from jaxdistill.cache import codec
    from jaxdistill.cache.reader import columns_of
    from jaxdistill.cache.store import Store

    rows = []
    for name, keep in report.progress(list(samplers().items()), "reading"):
        layout = codec.layout(keep, VOCABULARY, LENGTH, 1 / 64)
        few = spoken(keep, 8)
        whole = {column: np.concatenate([made[column] for made in few] * (ROWS // len(few))) for column in few[0]}
        whole["key"] = np.arange(2 * ROWS, dtype=np.uint64).reshape(ROWS, 2)
        with tempfile.TemporaryDirectory() as directory:
            store = Store(pathlib.Path(directory), columns_of(layout), ROWS, ROWS)
            store.write(0, whole)
            size = sum(file["bytes"] for file in store.check_shard(0)["files"].values())
            rounds = [read_all(store, layout, int(whole["number"].max())) for _ in range(3)]
        each = f"{whole['number'].mean():.1f}", f"{size / ROWS / LENGTH:.1f}"
        rows.append((name, *each, f"{ROWS * LENGTH / min(rounds) / 1e6:.2f}"))
    return report.Table(
        f"Reading batches of {BATCH} x {LENGTH} tokens, V = {VOCABULARY}",
        ("kept", "entries a token", "bytes a token", "million tokens a second"),
        rows,
    )


def read_all(store: Any, layout: Any, entries: int) -> float:
    """Seconds to read and decode every row once, in random order."""
    import numpy as np

    order = np.random.default_rng(0).permutation(ROWS).reshape(-1, BATCH)
    label_BL = np.zeros((BATCH, LENGTH), np.int32)
    began = time.perf_counter()
    for rows in order:
        layout.target(store.read(rows), label_BL, entries)
    return time.perf_counter() - began


@dataclasses.dataclass(frozen=True)
class Writing:
    """An untrained teacher and a batch for it."""

    layers: int
    width: int
    batch: int
    length: int = 512
    vocabulary: int = 32_768

    def row(self, name: str, keep: Any) -> tuple[str, ...]:
        """CPU seconds of the forward pass and of a build, for one batch, the two taking turns."""
        import jax
        import numpy as np

        from jaxdistill.cache import codec
        from jaxdistill.cache.columns import to_columns
        from jaxdistill.cache.encode import encode
        from jaxdistill.cache.reader import columns_of
        from jaxdistill.cache.store import Store
        from jaxdistill.losses.linear_heads import Sharding
        from jaxdistill.losses.linear_heads.bins import map_chunks
        from jaxdistill.models.transformer import Config, Transformer

        width = self.width
        model = Transformer(Config(self.vocabulary, self.layers, width, width // 64, 64, 11 * width // 4))
        params = jax.jit(model.init)(jax.random.key(0))
        tokens_BL = jax.random.randint(jax.random.key(1), (self.batch, self.length), 0, self.vocabulary)
        layout = codec.layout(keep, self.vocabulary, self.length, 1 / 64)
        key = jax.random.key(2, impl="threefry2x32")
        index_BL = np.arange(tokens_BL.size, dtype=np.uint32).reshape(tokens_BL.shape)

        @jax.jit
        def forward(params):
            head = model.head(params, model.hidden(params, tokens_BL)[0])
            return map_chunks(lambda head: jax.nn.logsumexp(head.logits(), axis=-1), head, positions=None)

        @jax.jit
        def encoded(params):
            head = model.head(params, model.hidden(params, tokens_BL)[0])
            return encode(head, tokens_BL, key, index_BL, keep, layout, Sharding())

        with tempfile.TemporaryDirectory() as directory:
            store = Store(pathlib.Path(directory), columns_of(layout), self.batch, self.batch)

            def build():
                columns = to_columns(encoded(params), columns_of(layout))
                store.write(0, columns | {"key": np.zeros((self.batch, 2), np.uint64)})

            alone, whole = [], []
            for _ in range(4):
                alone.append(cpu_seconds(lambda: jax.block_until_ready(forward(params))))
                whole.append(cpu_seconds(build))
        a, b = min(alone[1:]), min(whole[1:])  # the first compiles
        return name, f"{a:.2f}", f"{b:.2f}", f"{100 * (b - a) / a:+.1f} %"


def cpu_seconds(work: Any) -> float:
    """Of all threads of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def writing_table() -> report.Table:
    small, large = Writing(12, 512, 4), Writing(24, 1024, 1)
    cases = [("12 layers of 512", small, name) for name in samplers()]
    cases += [("24 layers of 1024", large, name) for name in ("50 draws", "top 12")]
    rows = [(size, *teacher.row(name, samplers()[name])) for size, teacher, name in report.progress(cases, "writing")]
    return report.Table(
        f"Writing, V = {Writing.vocabulary}",
        ("teacher", "kept", "forward alone, CPU s", "whole build, CPU s", "more"),
        rows,
    )


if __name__ == "__main__":
    report.write("cache_speed", "least of 3 rounds each", [reading_table(), writing_table()])
