"""A ring of recent steps on the device, and the thread that reads it, so that the program needs no callback.

A callback stalls a GPU: the host cannot enqueue what follows until the callback has run. Instead each step writes its packed
form into a ring that is part of the optimizer's state, and `Mechanized.report` copies the ring from time to time.
"""

import contextlib
import logging
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mechanicd.client import MechanicdError
from mechanicd.client.framework import deferred, do_later
from mechanicd.jax._report import Reporter, packed_size
from mechanicd.tuner import TunerConfig

log = logging.getLogger("mechanicd.jax")

RING_BYTES: Final = 4 * 2**20
LEAST, MOST = 16, 256
SECONDS: Final = 0.05


def empty(config: TunerConfig) -> jax.Array:
    """A ring for a run: uint32, shape (capacity, words of a packed step)."""
    words = packed_size(config)
    return jnp.zeros((min(max(RING_BYTES // (4 * words), LEAST), MOST), words), jnp.uint32)


def push(ring: jax.Array, step: jax.Array, packed: jax.Array) -> jax.Array:
    """The ring, with a step (int32, shape (), counted from 0) written over the oldest."""
    return jnp.asarray(lax.dynamic_update_index_in_dim(ring, packed, step % ring.shape[0], 0))


@jax.jit
def _copy(ring: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Copies that survive when the training donates its own buffers."""
    return jnp.copy(ring), jnp.copy(step)


class Reader:
    """Reports the steps in a ring to the run's server, on a thread of its own, which ends with this object.

    Args:
        reporter: takes each step as a callback's would.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._steps = _Steps(reporter)
        self._copies: queue.SimpleQueue[_Copies | threading.Event | None] = queue.SimpleQueue()
        self._copied, self._reports = 0.0, 0
        self._thread: threading.Thread | None = None
        self._latest: tuple[jax.Array, jax.Array] | None = None
        _readers.add(self)

    def look(self, ring: jax.Array, step: jax.Array, now: bool = False) -> None:
        """Copies the ring if it is due, or `now`; never waits for the device. A call without `now` counts as a report."""
        self._latest = ring, step
        moment = time.monotonic()
        if not now:
            self._reports += 1
            if moment - self._copied < SECONDS and self._reports < ring.shape[-2] // 4:
                return
        ring, step = ring.addressable_data(0), step.addressable_data(0)
        copies = _copy(ring.reshape(ring.shape[-2:]), step.reshape(()))  # one device's part, which under pmap has an axis of 1
        for array in copies:
            array.copy_to_host_async()
        with deferred:
            reports, self._copied, self._reports = self._reports, moment, 0
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_read, args=(self._copies, self._steps), name="mechanicd-report", daemon=True
                )
                self._thread.start()
            self._copies.put((*copies, reports))

    def finish(self) -> None:
        """Copies the last ring that `look` saw, unless it has been donated since, and waits until it has been reported."""
        if self._latest is not None and not self._latest[0].is_deleted():
            self.look(*self._latest, now=True)
        self.settle()

    def settle(self) -> None:
        """Waits until every copied step has been reported."""
        if self._thread is not None:
            reached = threading.Event()
            self._copies.put(reached)
            reached.wait()

    def end(self) -> None:
        """Waits until every copied step has been reported, and ends the thread; `look` starts another."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._copies.put(None)
            thread.join()

    def leave(self) -> None:
        """Nobody will call `look` again: the thread reads the last ring itself, if it has not been donated. Never waits; only
        the end of the process does."""
        if self._latest is not None and not self._latest[0].is_deleted():
            self._copies.put((*self._latest, 0))
            do_later(self.settle)

    def __del__(self, process_ends: Callable[[], bool] = sys.is_finalizing) -> None:  # later `sys` itself is gone
        if not process_ends():
            self._copies.put(None)


_readers: "weakref.WeakSet[Reader]" = weakref.WeakSet()


def finish_all() -> None:
    """For a program that ends without close(): its sessions are closed after this, and should have every step."""
    for reader in list(_readers):
        with contextlib.suppress(RuntimeError):  # the program failed, or the array was deleted meanwhile
            reader.finish()


_Copies: TypeAlias = tuple[jax.Array, jax.Array, int]


def _read(copies: "queue.SimpleQueue[_Copies | threading.Event | None]", steps: "_Steps") -> None:
    """The thread. It does not know the reader, which could else never be collected."""
    while (found := copies.get()) is not None:
        if isinstance(found, threading.Event):
            found.set()
            continue
        try:
            steps.read(*found)
        except Exception:  # the thread must live: others wait for it
            log.exception("reading a ring of steps failed")
        found = None  # at the end of the process, this thread must hold no array: JAX would abort as it lets go of it


class _Steps:
    """What the thread has reported so far."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._told: dict[int, bytes] = {}
        self._next, self._owed = 0, 0

    def read(self, ring: jax.Array, step: jax.Array, reports: int) -> None:
        """Reports the new steps of a copy."""
        self._owed += reports
        with contextlib.suppress(MechanicdError, RuntimeError):
            # The reporter keeps the first; the second is the program's, and is raised where its result is read.
            words = np.asarray(ring).reshape(-1, *ring.shape[-2:])[0]  # under pmap each device has one
            self._tell(words, int(np.asarray(step).reshape(-1)[0]), self._owed)
            self._owed = 0

    def _tell(self, ring: Any, steps: int, reports: int) -> None:
        """Reports the new steps. Other entries may be left from before a restore."""
        capacity = ring.shape[0]
        for step in range(self._first(ring, steps, reports), steps):
            entry = ring[step % capacity]
            words = entry.tobytes()
            if self._told.get(step) != words:
                self._reporter.follow(entry)  # if it is rejected, the next copy starts with it again
                self._told[step] = words
                self._next = step + 1
        for step in [step for step in self._told if not steps - capacity <= step < steps]:
            del self._told[step]

    def _first(self, ring: Any, steps: int, reports: int) -> int:
        """The first new step, which is the one after the last reported.

        If the ring does not hold that last one unchanged, nothing was reported yet, or a checkpoint was restored. Then each
        report stands for one step.
        """
        capacity = int(ring.shape[0])
        if self._told and self._next <= steps - capacity:
            return steps - capacity  # the ring wrapped: older steps are lost
        last = self._next - 1
        if self._next <= steps and last in self._told and self._told[last] == ring[last % capacity].tobytes():
            return self._next
        return max(0, steps - capacity, steps - reports)
