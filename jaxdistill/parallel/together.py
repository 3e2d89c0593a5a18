"""What the processes of a run do together: what one does for all, which rows each one makes, and when all of them stop.

With one process each of these is the plain thing.
"""

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its key-value store has no public name, up to JAX 0.12
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jaxdistill.errors import InputError

T = TypeVar("T")
FOREVER = 2**31 * 1000  # milliseconds
POLL_SECONDS = 0.1
_turns = itertools.count()


def is_first() -> bool:
    """Whether this is the process that writes what is written once. Asking it starts no device."""
    return distributed.global_state.process_id == 0


def is_several() -> bool:
    """Whether the job has more processes than this one."""
    return distributed.global_state.client is not None and distributed.global_state.num_processes > 1


def once(make: Callable[[], T]) -> T:
    """What process 0 makes, on every process: a value that JSON can hold. The others wait, or raise its InputError.

    They wait at the coordination service: a collective operation of the devices, all that JAX's `multihost_utils` has,
    would be given up within seconds.
    """
    if not is_several():
        return make()
    store, key = _store(), f"jaxdistill/once/{next(_turns)}"
    if is_first():
        try:
            made = make()
        except InputError as error:
            store.key_value_set(key, json.dumps({"refused": str(error)}))
            raise
        store.key_value_set(key, json.dumps({"made": made}))
        return made
    while True:
        try:
            said = json.loads(store.key_value_try_get(key))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            time.sleep(POLL_SECONDS)
            continue
        if "refused" in said:
            raise InputError(said["refused"])
        return said["made"]


def first(make: Callable[[], T]) -> T:
    """What each process makes for itself, process 0 before the others: they find done what can be shared."""
    made: list[T] = []
    once(lambda: made.append(make()))
    return made[0] if made else make()


def wait() -> None:
    """Until all processes are here."""
    if is_several():
        _store().wait_at_barrier(f"jaxdistill/wait/{next(_turns)}", FOREVER)


def _store() -> Any:
    return distributed.global_state.client


def rows(shape: tuple[int, ...], sharding: Sharding) -> np.ndarray:
    """The rows, ascending, of an array of this shape that the devices of this process hold, or a part of each."""
    if not is_several():
        return np.arange(shape[0])
    held = sharding.addressable_devices_indices_map(shape).values()
    parts = [np.arange(*index[0].indices(shape[0])) for index in held if index is not None]
    return np.unique(np.concatenate(parts))


def whole(tree: Any, size: int) -> Any:
    """Shapes and dtypes of the global arrays, of `size` rows each, of which those of `tree` have some rows."""
    if not is_several():
        return tree
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), tree)


def assemble(tree: Any, whole: Any, rows_B: np.ndarray | None, shardings: Any) -> Any:
    """The global arrays whose rows of this process are those of `tree`.

    Args:
      tree: of NumPy arrays, the rows `rows_B` of each.
      whole: the global shapes, as `whole` gives them.
      rows_B: as `rows` gives them; None for all.
      shardings: of every array.
    """

    def array(x: Any, of: Any, sharding: Sharding) -> jax.Array:
        def part(index: Any) -> Any:
            if rows_B is None:
                return x[index]
            start, stop, _ = index[0].indices(of.shape[0])
            first = int(np.searchsorted(rows_B, start))
            return x[(slice(first, first + stop - start), *index[1:])]

        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(of.shape, sharding, part)

    return jax.tree.map(array, tree, whole, shardings)


def in_turn(function: Callable[..., T]) -> Callable[..., T]:
    """The same, where it must be awaited: the collective operations of CPUs lock each other when programs overlap."""
    if not is_several() or jax.default_backend() != "cpu":
        return function
    return lambda *args: jax.block_until_ready(function(*args))


@contextlib.contextmanager
def stopping() -> Generator[Callable[[int], int | None]]:
    """A function of the steps taken: the signal that asks for an end after this step, None where there is none.

    SIGTERM or SIGINT, once; a second one acts as it always did. Of several processes any may be asked: all of them
    then stop after the same step, which JAX's preemption service finds.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: None
        return
    joined = jax.distributed.is_initialized()
    # SIGTERM is heard by the preemption service, in C, and a Ctrl-C is made one.
    numbers = [signal.SIGINT] if joined else [signal.SIGTERM, signal.SIGINT]

    def note(number, frame):
        received.append(number)
        signal.signal(number, before[number])
        if joined:
            os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.signal(number, note) for number in numbers}

    def asked(step: int) -> int | None:
        if joined and not multihost_utils.reached_preemption_sync_point(step):
            return None
        return next(iter(received), signal.SIGTERM if joined else None)

    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
