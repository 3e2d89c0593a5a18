"""What does the TPU compiler say of the sparse kernels, chip by chip, on a machine that has none?

    python benchmarks/ahead_of_time.py              # v5e, v5p, v6e, tpu7x: nine minutes on two busy cores
    python benchmarks/ahead_of_time.py --chips v5e

Needs libtpu (pip install 'jaxdistill[tpu]', or PYTHONPATH=.venv/libtpu after `make test`). One chunk of T = 2048
tokens, D = 4096, V = 128256, S = 50 ids a token, bf16 operands. Each kernel is compiled by Mosaic in a process of its
own, and libtpu writes down the program it made.

Nothing runs. A bundle is one instruction word, issued in one cycle at best; bundles times the number of times that they
are executed is a lower bound of the kernel's cycles, without waits for memory or for a matrix unit's results. The
number of trips through the loops over ids depends on the ids; here they are log-uniform, as token ranks are by Zipf's
law. GFLOP and GB are the compiler's own, which counts the body of a loop once: `backward` scans two chunks of 1024
tokens, and its numbers are those of one.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import report
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.losses.linear_heads.blocks import MIB, Tile, TpuBlocks, for_device
from jaxdistill.losses.linear_heads.sparse import pallas_tpu_tile as tile
from jaxdistill.losses.linear_heads.sparse.pallas_tpu_backward import backward
from jaxdistill.losses.linear_heads.sparse.pallas_tpu_elementwise import gradient, statistics
from jaxdistill.losses.linear_heads.sparse.pallas_tpu_forward import forward
from jaxdistill.parallel import aot

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
T, D, V, S = 2048, 4096, 128_256, 50
SHAPES = {
    "h": ((T, D), jnp.bfloat16),
    "w": ((V, D), jnp.bfloat16),
    "z": ((T, V), jnp.float32),
    "id": ((T, S), jnp.int32),
    "lse": ((T,), jnp.float32),
    "dlse": ((T,), jnp.float32),
    "dz": ((T, S), jnp.float32),
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel, what it takes, and the tile that it walks with.

    Attributes:
      call: (blocks, *arrays) -> results.
      takes: keys of SHAPES.
      tile: its tile among the blocks.
      loops: what the loops of the program go over, from the outermost.
    """

    call: Callable
    takes: tuple[str, ...]
    tile: Callable[[TpuBlocks], Tile]
    loops: tuple[str, ...] = ("step", "band", "trip")


def transposed(call: Callable) -> Callable:
    """The same for logits [V, T], as XLA's matmul lays them out for these kernels; [T, V] would be copied first."""
    return lambda blocks, z_VT, *rest: call(blocks, z_VT.T, *rest)


KERNELS = {
    "statistics": Kernel(
        transposed(lambda blocks, *a: statistics(*a, blocks=blocks)), ("z", "id"), lambda blocks: blocks.elementwise
    ),
    "gradient": Kernel(
        transposed(lambda blocks, *a: gradient(*a, dtype=jnp.bfloat16, blocks=blocks).T),
        ("z", "id", "lse", "dlse", "dz"),
        lambda blocks: blocks.elementwise,
    ),
    "forward": Kernel(
        lambda blocks, h, w, *a: forward(h, w, None, *a, vocab_size=V, blocks=blocks),
        ("h", "w", "id"),
        lambda blocks: blocks.forward,
    ),
    "backward": Kernel(
        lambda blocks, h, w, *a: backward(h, w, None, *a, vocab_size=V, blocks=blocks),
        ("h", "w", "id", "lse", "dlse", "dz"),
        lambda blocks: blocks.backward,
        ("step", "tokens", "band", "trip"),
    ),
}


def compile_kernel(chip: str, name: str) -> dict:
    """What the compiler says of one kernel; in a fresh process, since libtpu reads its settings once."""
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as dump:
        topology = aot.topology(TOPOLOGIES[chip])
        dumped = {"LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"}
        os.environ |= topology.environment() | dumped
        device = topology.devices()[0]
        sharding = NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec())
        kernel, blocks = KERNELS[name], for_device(device.device_kind)
        shapes = [SHAPES[key] if key != "z" else ((V, T), jnp.float32) for key in kernel.takes]
        arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]
        compiled = jax.jit(functools.partial(kernel.call, blocks)).trace(*arguments).lower().compile()
        bundles, busy = schedule(pathlib.Path(dump), f"jaxdistill_sparse_{name}")
    cost = compiled.cost_analysis()
    call = next(
        line for line in compiled.as_text().splitlines() if re.search(rf"%jaxdistill_sparse_{name}\S* = ", line)
    )
    (vmem,) = re.findall(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"', call)
    return {
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "vmem": int(vmem),
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "bundles": bundles,
        "busy": busy,
        "executed": executed(kernel, blocks, bundles),
    }


def schedule(dump: pathlib.Path, name: str) -> tuple[list[int], float]:
    """(bundles at each loop depth from 1 on, share of the matrix units' slots used where they are used at all)."""
    bundles = next(path for path in dump.glob(f"*{name}*-final_bundles.txt") if "analysis" not in path.name)
    depths = [
        len(m[1]) for m in re.finditer(r"^ *(?:0x[0-9a-f]+|0) +(?:[A-Z]{2})? *: *(>*)", bundles.read_text(), re.M)
    ]
    used = next(path for path in dump.glob(f"*{name}*final_hlo-static-per-bundle-utilization.txt"))
    head, _, body = used.read_text().partition("== UTILIZATION:\n")
    names, capacity = head.splitlines()[1].split(","), head.splitlines()[2].split()
    unit = next(at for at, column in enumerate(names) if column.strip() in ("MXU", "MATMUL"))
    slots = [int(line.split()[unit]) for line in body.splitlines() if line.strip()]
    inner = [depth for depth, slot in zip(depths, slots, strict=False) if slot]
    deepest = [slot for depth, slot in zip(depths, slots, strict=False) if inner and depth == max(inner)]
    busy = sum(deepest) / (len(deepest) * int(capacity[unit])) if deepest else 0.0
    return [depths.count(depth) for depth in range(1, max(depths) + 1)], busy


def executed(kernel: Kernel, blocks: TpuBlocks, bundles: list[int]) -> float:
    """Bundles of the whole chunk on one core, each depth times its executions."""
    grid = tile.Grid.over(T, V, kernel.tile(blocks))
    cores = blocks.cores
    trips = int(tile.count_trips(tile.known_ids(some_ids(), V, grid.tokens), grid.tokens, grid.bands).sum())
    tiles = grid.shape[0] * grid.shape[1]
    times = {"tokens": tiles, "band": tiles * grid.vocabulary // tile.BAND, "trip": trips}
    times["step"] = tiles if "tokens" not in kernel.loops else tiles * kernel.tile(blocks).tokens // blocks.chunk
    return sum(count * times[loop] for count, loop in zip(bundles, kernel.loops, strict=True)) / cores


def some_ids() -> jax.Array:
    """T lists of S distinct ids whose logarithms are uniform."""
    rng = np.random.default_rng(0)
    draws = (np.unique((V ** rng.random(8 * S)).astype(np.int32) - 1) for _ in range(T))
    return jnp.array([np.sort(rng.choice(draw, S, replace=False)) for draw in draws])


def row(chip: str, name: str) -> list:
    said = report.in_fresh_process(compile_kernel, chip, name)
    depths = ", ".join(f"{n} a {loop}" for n, loop in zip(said["bundles"], KERNELS[name].loops, strict=True))
    return [
        chip,
        name,
        f"{said['temporary'] / MIB:.0f}",
        f"{said['vmem'] / MIB:.1f}",
        f"{said['flops'] / 1e9:.0f}",
        f"{said['bytes'] / 1e9:.1f}",
        depths,
        f"{said['executed'] / 1e6:.2f}",
        f"{said['busy']:.0%}" if said["busy"] else "-",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    jax.config.update("jax_platforms", "cpu")
    cases = [(chip, name) for chip in parser.parse_args().chips for name in KERNELS]
    rows = [row(*case) for case in report.progress(cases, "Compiling")]
    columns = ["chip", "kernel", "temporary MiB", "VMEM MiB", "GFLOP", "GB", "bundles", "million bundles a core"]
    notes = f"compiled for the chips, not run: T = {T}, D = {D}, V = {V}, S = {S}, bf16 operands, fp32 logits"
    report.write("ahead_of_time", notes, [report.Table("One chunk", [*columns, "matrix units busy"], rows)])


if __name__ == "__main__":
    main()
