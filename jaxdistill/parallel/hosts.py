"""Hosts: one run as several processes, each with its own devices.

Every process runs the same program, and JAX makes one mesh of all their devices: what is computed needs no word here.
What is said is how the processes begin, and how they end: together, and with one sentence. `together` has what they do
in between.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # its key-value store, the way to speak without devices, has no public name

from jaxdistill.errors import InputError, Interrupted
from jaxdistill.parallel.places import Place, cluster

JOIN_SECONDS = 300  # for all processes to be there
SILENCE_SECONDS = 60  # without a heartbeat, after which a process counts as dead
FAREWELL_SECONDS = 5  # for the others to hear why, before the process goes that they hear it through
FOREVER = 2**31 * 1000  # milliseconds
STOP = "jaxdistill/stop"
LOST = re.compile("Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|closed by peer|reset by peer")

Answer = Callable[[BaseException], tuple[str, int] | None]


@contextlib.contextmanager
def job(place: Place | None, answer: Answer) -> Generator[None]:
    """Be one process of a job for the length of the block; nothing at all where the place is None.

    `Interrupted` comes to all processes after the same step. After any other exception all are told, and this process
    exits here and now, since what it has in flight waits for others that are gone.

    Args:
      place: as `places.find` gives it.
      answer: the sentence and the exit status of an exception; None where it is a fault, which shows its traceback.

    Raises:
      InputError: the processes cannot begin: the port is taken, or the cluster does not say where the others are.
    """
    if place is None or not _join(place):
        yield
        return
    ending = _Ending()
    try:
        yield
    except Interrupted:
        ending.part()
        raise
    except BaseException as error:
        ending.end(error, answer)
    ending.part()


def _join(place: Place) -> bool:
    """Start JAX's distributed service; gives whether there is a job, which on a TPU VM only JAX can tell."""
    if place.process == 0:
        _check_free(int(str(place.coordinator).rpartition(":")[2]))
    where = f"process 0 at {place.coordinator}" if place.coordinator else "one another"
    _on_abort(
        f"the processes did not find {where} within {JOIN_SECONDS} s: start all of them, with the same --processes "
        "and with an address of process 0 that all can reach"
    )
    try:
        jax.distributed.initialize(
            *place, initialization_timeout=JOIN_SECONDS, heartbeat_timeout_seconds=SILENCE_SECONDS
        )
    except (ValueError, RuntimeError, KeyError) as error:
        if place == Place() and cluster() == "TPU" and isinstance(error, ValueError):
            return False
        raise InputError(
            f"JAX cannot join the processes of {cluster() or 'this job'} ({str(error).splitlines()[0]}): give "
            "--coordinator, --processes and --process, or --processes 1 for one that is alone"
        ) from error
    return True


def _check_free(port: int) -> None:
    """InputError where another program listens at the port of process 0: the service would crash."""
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise InputError(f"process 0 cannot listen at port {port} ({error.strerror}): choose another one") from error


class _Ending:
    """How the processes of a job end.

    Who ends with an error leaves its sentence where the others wait for it. Who dies without a word is missed by JAX,
    which aborts the others; they say so.
    """

    def __init__(self):
        state: Any = distributed.global_state
        self._client, self._me, self._parting = (
            state.client,
            f"process {state.process_id} of {state.num_processes}",
            False,
        )
        _on_abort(
            f"{self._me} stops, because another one has died or cannot be reached any more; "
            "the same command continues from the last checkpoint"
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def part(self) -> None:
        """Leave when all do."""
        self._parting = True
        jax.distributed.shutdown()

    def end(self, error: BaseException, answer: Answer) -> NoReturn:
        """Say why, tell the others, and exit."""
        if self._parting:  # by another one's word, which explains the error
            threading.Event().wait()
        self._parting = True
        answered = answer(error) or self._lost(error)
        if answered is None:
            traceback.print_exception(error)
            answered = f"{self._me} has failed, and its log says how: {type(error).__name__}", 1
        sentence, status = answered
        with contextlib.suppress(ValueError, RuntimeError):  # somebody else was first
            self._client.key_value_set(STOP, f"{status} {sentence}")
        self._leave(sentence, status)

    def _lost(self, error: BaseException) -> tuple[str, int] | None:
        """What to say of an operation that failed because another process did."""
        if not isinstance(error, (ValueError, RuntimeError)) or not LOST.search(str(error)):
            return None
        reason = str(error).strip().splitlines()[0]
        return f"{self._me} has lost another one ({reason}); the same command continues from the last checkpoint", 1

    def _listen(self) -> None:
        try:
            status, _, sentence = self._client.blocking_key_value_get(STOP, FOREVER).partition(" ")
        except Exception:  # the job is over
            return
        if not self._parting:
            self._parting = True
            self._leave(sentence, int(status))

    def _leave(self, sentence: str, status: int) -> NoReturn:
        _on_abort(sentence, status)  # once another one has left, JAX may be faster; either way this is the last line
        with contextlib.suppress(Exception):  # the others may be gone
            self._client.wait_at_barrier(STOP, 1000 * FAREWELL_SECONDS)
        print(f"jaxdistill: {sentence}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


_speak: Any = None


def _on_abort(sentence: str, status: int = 1) -> None:
    """What to say where JAX's service aborts this process, as it does when it misses another one.

    It aborts in a thread of its own, with a stack trace and no word to Python. So the signal is caught in C.
    """

    def speak(_: int) -> None:
        os.write(2, f"jaxdistill: {sentence}\n".encode())
        os._exit(status)

    global _speak
    _speak = ctypes.CFUNCTYPE(None, ctypes.c_int)(speak)  # kept, since C knows no more than its address
    ctypes.CDLL(None).signal(signal.SIGABRT, _speak)
