"""The steps that a device keeps until its host reads them, and the thread that does, so that the program has no callback.

A callback makes a GPU wait: the host can't enqueue what follows it until it has run. Here each step leaves what `pack` makes
of it in a ring that is part of the optimizer's state, and `Mechanized.report` copies the ring now and then.
"""

import queue
import threading
import time
from typing import Any, Final

import numpy as np

import jax
import jax.numpy as jnp
from jax import lax
from mechanicd.client import MechanicdError
from mechanicd.jax._report import Reporter
from mechanicd.tuner import TunerConfig

RING_BYTES: Final = 4 * 2**20
LEAST, MOST = 16, 256
SECONDS: Final = 0.05


def empty(config: TunerConfig) -> jax.Array:
    """A ring for a run: uint32, shape (capacity, words of a packed step)."""
    n, G = len(config.betas), len(config.scale_groups)
    words = 2 + 10 * n * G + 10 * G
    return jnp.zeros((min(max(RING_BYTES // (4 * words), LEAST), MOST), words), jnp.uint32)


def push(ring: jax.Array, step: jax.Array, packed: jax.Array) -> jax.Array:
    """The ring with a step (int32, shape (), counted from 0) in the place of the oldest."""
    return jnp.asarray(lax.dynamic_update_index_in_dim(ring, packed, step % ring.shape[0], 0))


@jax.jit
def _copy(ring: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Arrays that stay when the training gives its own away."""
    return jnp.copy(ring), jnp.copy(step)


class Reader:
    """Tells a run's server what its ring has, on a thread of its own.

    Args:
        reporter: takes each step as a callback's would.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._told: dict[int, bytes] = {}
        self._copies: queue.Queue[tuple[jax.Array, jax.Array]] = queue.Queue()
        self._copied, self._since = 0.0, 0
        self._thread: threading.Thread | None = None

    def look(self, ring: jax.Array, step: jax.Array, now: bool = False) -> None:
        """Copies the ring if it is time to, or `now`; does not wait for the device."""
        self._since += 1
        moment = time.monotonic()
        if not now and moment - self._copied < SECONDS and self._since < ring.shape[0] // 4:
            return
        self._copied, self._since = moment, 0
        copies = _copy(ring.addressable_data(0), step.addressable_data(0))
        for array in copies:
            array.copy_to_host_async()
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="mechanicd-report", daemon=True)
            self._thread.start()
        self._copies.put(copies)

    def settle(self) -> None:
        """Waits until all that was copied is told."""
        self._copies.join()

    def _read(self) -> None:
        while True:
            ring, step = self._copies.get()
            try:
                self._tell(np.asarray(ring), int(step))
            except MechanicdError:
                pass  # the reporter has it
            except RuntimeError as error:  # the program's own: its user hears of it where the parameters are read
                del error
            finally:
                self._copies.task_done()

    def _tell(self, ring: Any, steps: int) -> None:
        """Tells what is new. The first time in a process that is the last step alone: those before it, if any, are of an
        earlier life of the run."""
        capacity = ring.shape[0]
        first = max(0, steps - capacity) if self._told else max(0, steps - 1)
        for step in range(first, steps):
            entry = ring[step % capacity]
            words = entry.tobytes()
            if self._told.get(step) != words:
                self._reporter.follow(entry)  # where it is refused, the next look begins with it again
                self._told[step] = words
        for step in [step for step in self._told if not steps - capacity <= step < steps]:
            del self._told[step]
